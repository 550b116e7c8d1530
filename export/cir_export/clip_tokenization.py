"""CLIP's tokeniser as one `tokenizers` JSON: cleaning, byte-pair merges, start and end.

CLIP repairs texts with `ftfy`, resolves HTML entities twice, collapses white space and makes letters small.
Of that, the JSON holds everything that needs no decoding of damaged text: curly quotes, ligatures, full-width
characters, control characters and line breaks as ftfy has them, the common entities, NFC. What it does not do
is repair mojibake ("dÃ©colletÃ©"); docs/systems.md says how much that matters.
"""

from __future__ import annotations

import gzip
import unicodedata
from importlib import resources
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

__all__ = ["CONTEXT_LENGTH", "WORDS", "build_clip_tokenizer", "clip_text"]

CONTEXT_LENGTH = 77

_START, _END = "<|startoftext|>", "<|endoftext|>"

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's words: contractions, letters, single digits, runs of other signs. None holds white space."""

_ENTITIES = (
    ("lt", "<"), ("gt", ">"), ("quot", '"'), ("apos", "'"), ("nbsp", " "), ("#39", "'"), ("#x27", "'"),
    ("#34", '"'), ("eacute", "é"), ("egrave", "è"), ("agrave", "à"), ("ndash", "\u2013"), ("mdash", "\u2014"),
    ("hellip", "…"), ("lsquo", "'"), ("rsquo", "'"), ("ldquo", '"'), ("rdquo", '"'), ("amp", "&"),
)  # fmt: skip
"""Entities that captions hold, "&amp;" last so that one pass resolves one level."""

_FTFY = (
    (r"[\x{02BC}\x{2018}-\x{201B}]", "'"),
    (r"[\x{201C}-\x{201F}]", '"'),
    (r"\x1b\[((?:\d|;)*)([a-zA-Z])", ""),
    (r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{FEFF}\x{FFF9}-\x{FFFC}\x{206A}-\x{206F}]", ""),
)  # fmt: skip
"""What ftfy's default settings replace, in its words: uncurl_quotes, remove_terminal_escapes,
remove_control_chars."""

_LIGATURES = "ﬀﬁﬂﬃﬄﬅﬆĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳ"
"""fix_latin_ligatures: these become the letters that they are made of."""


def build_clip_tokenizer() -> Tokenizer:
    """The tokeniser of all of OpenAI's CLIP models: `<|startoftext|> a <|endoftext|>`."""
    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = _cleaning()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Start and end are not added tokens: those are looked for in the raw text, so that a text could type one.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        pair=f"{_START} $A $B {_END}",
        special_tokens=[(word, vocabulary[word]) for word in (_START, _END)],
    )
    return tokenizer


def clip_text() -> dict[str, Any]:
    """`text` of a bundle's manifest for CLIP4Cir; two captions become its sentence for FashionIQ."""
    return {"pad_id": 0, "unk_id": None, "max_tokens": CONTEXT_LENGTH, "captions": "and:clip4cir"}


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids by token, and the merges, best first."""
    packed = resources.files("cir_export.resources").joinpath("clip_merges.txt.gz").read_bytes()
    merges = []
    for line in gzip.decompress(packed).decode().splitlines():
        first, second = line.split()
        merges.append((first, second))
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), _START, _END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """The printable stand-ins of the 256 bytes, in CLIP's order: those that print first, then the rest."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def _cleaning() -> normalizers.Normalizer:
    entities = [normalizers.Replace(f"&{name};", character) for name, character in _ENTITIES]
    return normalizers.Sequence(
        [
            *entities,
            *(normalizers.Replace(Regex(pattern), text) for pattern, text in _FTFY),
            *(normalizers.Replace(one, many) for one, many in _characters().items()),
            normalizers.NFC(),
            *entities,
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )


def _characters() -> dict[str, str]:
    """Characters that ftfy replaces: ligatures, full-width ASCII, Windows-1252 bytes read as Latin-1."""
    replaced = {letter: unicodedata.normalize("NFKC", letter) for letter in _LIGATURES}
    replaced |= {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)} | {"\u3000": " "}
    for byte in range(0x80, 0xA0):
        character = bytes([byte]).decode("cp1252", "ignore")
        if character:
            replaced[chr(byte)] = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}.get(
                character, character
            )
    return replaced
