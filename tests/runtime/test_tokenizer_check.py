"""Tokenizers that could take more than a multiple of a text are refused; those that people use are not."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from cir_infer.bundle.manifest import TextInput
from cir_infer.bundle.patterns import pattern_cost
from cir_infer.bundle.tokenizer_check import MAX_CHARACTERS, check_tokenizer
from cir_infer.errors import BundleError
from cir_infer.inputs.texts import TextReader
from tests.bundles import tokenizer_json

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer(**changes: Any) -> bytes:
    return json.dumps(json.loads(tokenizer_json()) | changes).encode()


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def splits(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TWICE = [{"Sequence": {"id": "A", "type_id": 0}}] * 60
CHARSMAP = struct.pack("<I", 4) + bytes(4) + b"x" * 5000 + b"\0"

HOSTILE: dict[str, dict[str, Any]] = {
    "replacements that multiply": {"normalizer": sequence(*[replace("e", "e" * 100)] * 5)},
    "replacements of a class that multiply": {
        "normalizer": sequence(*[replace("[a-z]", "zz", "Regex")] * 20),
    },
    "letters that become one another": {
        "normalizer": sequence(*[replace(chr(97 + n), chr(98 + n) * 4) for n in range(20)]),
    },
    "a pattern that matches nothing": {"normalizer": replace("x*", "y" * 500, "Regex")},
    "a text before every text": {"normalizer": {"type": "Prepend", "prepend": "x" * 1000}},
    "compatibility forms of one another": {"normalizer": sequence(*[{"type": "NFKD"}] * 3)},
    "bytes of bytes": {"pre_tokenizer": splits(*[BYTES] * 8)},
    "nested repetitions": {"pre_tokenizer": split("(a+)+[bd]")},
    "alternatives that overlap": {"pre_tokenizer": split("(a|a)*[bd]")},
    "alternatives in a bounded repetition": {"pre_tokenizer": split("(a|a){25}[bd]")},
    "three repetitions in a row": {"pre_tokenizer": split("a*a*a*[bd]")},
    "a square for every position": {"pre_tokenizer": split("a*(?=a*[bd])a*[bd]")},
    "repetitions that multiply": {"pre_tokenizer": split("((a{1000}){1000}){1000}")},
    "a square over a text that has grown": {
        "normalizer": replace("[a-z]", "z" * 20, "Regex"),
        "pre_tokenizer": split("z+(?=[0-9])"),
    },
    "a reference back": {"pre_tokenizer": split(r"(a*)\1")},
    "a pattern nested deep": {"pre_tokenizer": split("(" * 500 + "a" + ")" * 500)},
    "chance": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}},
    "words that are searched for long": {
        "model": {
            "type": "WordPiece",
            "vocab": {"a": 0, "[UNK]": 1},
            "unk_token": "[UNK]",
            "max_input_chars_per_word": 1_000_000,
            "continuing_subword_prefix": "##",
        }
    },
    "a long prefix of every letter": {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0},
            "merges": [],
            "continuing_subword_prefix": "x" * 100_000,
        }
    },
    "a template that repeats the text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": TWICE,
            "pair": TWICE,
            "special_tokens": {},
        },
        "normalizer": replace("e", "e" * 10),
    },
    "a part that nobody knows": {"normalizer": {"type": "Shell"}},
    "no part": {"pre_tokenizer": 7},
    "sequences of sequences": {
        "normalizer": sequence(sequence(sequence(sequence(sequence(sequence({"type": "NFC"}))))))
    },
    "a table of long texts": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()}
    },
    "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "????"}},
    "an added token without an end": {"added_tokens": [{"id": 9, "content": "x" * 100_000}]},
    "no model": {"model": None},
    "a number beyond 32 bits": {"model": {"type": "WordLevel", "vocab": {"a": 1 << 31}, "unk_token": "a"}},
    "a number below zero": {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}},
    "an added number beyond 32 bits": {"added_tokens": [{"id": 1 << 31, "content": "x"}]},
    "numbers of a template beyond 32 bits": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "s", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"s": {"id": "s", "ids": [1 << 31], "tokens": ["s"]}},
        }
    },
    "a separator beyond 32 bits": {
        "post_processor": {"type": "BertProcessing", "sep": ["s", 1 << 31], "cls": ["c", 1]}
    },
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tokenizer_is_refused_before_it_reads(what: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_tokenizer(tokenizer(**HOSTILE[what]))
    assert len(str(caught.value)) < 500
    with pytest.raises(BundleError):
        TextReader(tokenizer(**HOSTILE[what]), TextInput(0, 4, 64))


GOOD: dict[str, dict[str, Any]] = {
    "GPT-2": {"pre_tokenizer": {**BYTES, "use_regex": True}},
    "Llama 3": {"pre_tokenizer": splits(split(LLAMA3), BYTES)},
    "Qwen": {"normalizer": {"type": "NFC"}, "pre_tokenizer": splits(split(LLAMA3), BYTES)},
    "CLIP of others": {
        "normalizer": sequence({"type": "NFC"}, replace(r"\s+", " ", "Regex"), {"type": "Lowercase"}),
        "pre_tokenizer": splits(split(CLIP), BYTES),
    },
    "BERT": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    },
    "SentencePiece": {
        "normalizer": sequence({"type": "NFKC"}, replace(" {2,}", " ", "Regex")),
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    },
    "padded": {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0}},
}


@pytest.mark.parametrize("what", GOOD)
def test_what_people_use_is_read(what: str) -> None:
    check_tokenizer(tokenizer(**GOOD[what]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"model": {"type": "WordLevel"}, "model": {"type": "WordLevel"}}',
        b"[" + b"[]," * 2_000_000 + b"[]]",
        b" " * (65 << 20),
    ],
    ids=["nothing", "nested", "no text", "twice", "many", "large"],
)
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        check_tokenizer(data)


@pytest.mark.parametrize(
    ("pattern", "degree", "shortest"),
    [
        (GPT2, 1, 1),
        (LLAMA3, 1, 1),
        (CLIP, 0, 1),
        (r"\bcannot\b", 0, 6),
        (r"[^A-Za-z() ]", 0, 1),
        (r"\x1b\[((?:\d|;)*)([a-zA-Z])", 1, 3),
        (r"\s+", 0, 1),
        ("(?:ab){2,3}c?", 0, 4),
        ("x*", 0, 0),
        ("[[:alpha:]]+", 0, 1),
        ("a++b", 1, 2),
        (r"[\]\-\x{2018}-\x{201B}]", 0, 1),
    ],
)
def test_costs_of_patterns(pattern: str, degree: int, shortest: int) -> None:
    cost = pattern_cost(pattern)
    assert (cost.degree, cost.shortest) == (degree, shortest)
    Regex(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a",
        "a)",
        "[a",
        "[]",
        "*a",
        "a**",
        "a{2}{3}",
        "(?<n>a)",
        r"\1",
        r"\p{",
        "a{2000}",
        "(?i)a",
        r"\x{110000}",
        "\\",
    ],
)
def test_patterns_that_are_not_read(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"character|is not|it"):
        pattern_cost(pattern)


PIECES = st.sampled_from(
    [
        "a",
        "b",
        "[ab]",
        "[^a]",
        r"\w",
        r"\s",
        "(?:a|b)",
        "(?:ab)",
        "a*",
        "b+",
        "a?",
        "[ab]{1,3}",
        "(?=b)",
        "$",
        "|",
    ]
)


@settings(max_examples=200)
@given(
    st.lists(PIECES, min_size=1, max_size=6).map("".join),
    st.text("ab ", max_size=12),
    st.sampled_from(["", "xy"]),
)
def test_no_replacement_grows_more_than_its_bound(pattern: str, text: str, content: str) -> None:
    normalizer = normalizers.Sequence([normalizers.Replace(Regex(pattern), content)] * 2)
    data = tokenizer(normalizer=json.loads(normalizer.__getstate__()))
    try:
        check_tokenizer(data)
    except BundleError:
        return
    cost = pattern_cost(pattern)
    once = max(1.0, len(content) / cost.shortest if cost.shortest else 1 + len(content))
    assert len(normalizer.normalize_str(text)) <= (len(text) + 1) * once**2 + len(content) * 2


def test_the_longest_text_is_read_and_the_next_is_not() -> None:
    reader = TextReader(tokenizer(), TextInput(0, 4, 1 << 16))
    assert reader.read(["a " * (MAX_CHARACTERS // 2)]).lengths[0] > 2000
    with pytest.raises(Exception, match="more than 5000 characters"):
        reader.read(["a " * (MAX_CHARACTERS // 2) + "a"])
    with pytest.raises(Exception, match="more than 5000 characters"):
        reader.read([["a" * 3000, "a" * 3000]])


def test_exporters_tokenizers_pass() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    check_tokenizer(made.to_str().encode())
    check_tokenizer(tokenizer_json())
