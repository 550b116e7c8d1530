"""Word-level tokenisers as one `tokenizers` JSON: cleaning, splitting, vocabulary and special tokens.

Everything is inside the JSON, so that training, the bundle and every language binding of `tokenizers`
read a text alike. The rules are ARTEMIS' caption cleaning followed by what NLTK's word tokeniser does to
a cleaned text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from cir_infer.errors import UsageError

__all__ = [
    "SPECIALS",
    "build_tokenizer",
    "known_words",
    "unknown_id",
    "vocabulary_from_texts",
    "word_splitter",
]

SPECIALS = ("<pad>", "<start>", "<and>", "<end>", "<unk>")
"""Special tokens by id, as in ARTEMIS. Cleaning drops angle brackets, so no text can type one."""

# NLTK splits these into two tokens wherever they stand as words.
_CONTRACTIONS = (
    ("cannot", "can not"),
    ("gimme", "gim me"),
    ("gonna", "gon na"),
    ("gotta", "got ta"),
    ("lemme", "lem me"),
    ("wanna", "wan na"),
)


def word_splitter() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """The cleaning and the splitting into words, without a vocabulary."""
    cleaning = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[-/\\]"), " "),
            normalizers.Replace(Regex(r"[^A-Za-z() ]"), ""),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(rf"\b{word}\b"), split) for word, split in _CONTRACTIONS),
        ]
    )
    splitting = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[()]"), "isolated")]
    )
    return cleaning, splitting


def vocabulary_from_texts(texts: Iterable[str]) -> dict[str, int]:
    """The special tokens, then every word in the order in which it first occurs.

    Raises:
        UsageError: there is no word in the texts.
    """
    cleaning, splitting = word_splitter()
    vocabulary = {word: index for index, word in enumerate(SPECIALS)}
    for text in texts:
        for word, _ in splitting.pre_tokenize_str(cleaning.normalize_str(text)):
            vocabulary.setdefault(word, len(vocabulary))
    if len(vocabulary) == len(SPECIALS):
        raise UsageError("no word in the texts; expected captions to build a vocabulary from")
    return vocabulary


def build_tokenizer(vocabulary: Mapping[str, int]) -> Tokenizer:
    """A tokeniser that reads `a` as `<start> a <end>` and the pair `a`, `b` as `<start> a <and> b <end>`.

    Args:
        vocabulary: token ids by word, with all of `SPECIALS`. Ids run from 0 without a gap.

    Raises:
        UsageError: a special token is missing, or the ids have a gap or a duplicate.
    """
    missing = [word for word in SPECIALS if word not in vocabulary]
    if missing:
        raise UsageError(f"the vocabulary has no {missing[0]}; expected all of {' '.join(SPECIALS)}")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UsageError(f"the vocabulary's ids are not 0..{len(vocabulary) - 1}, each once")
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = word_splitter()
    # The special tokens are not added tokens: those are looked for in the raw text, before the cleaning.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        pair="<start> $A <and> $B <end>",
        special_tokens=[(word, vocabulary[word]) for word in ("<start>", "<and>", "<end>")],
    )
    return tokenizer


def known_words(tokenizer: Tokenizer) -> dict[str, str | int]:
    """How much a tokeniser can read, for `vocabulary` of a bundle's provenance.

    Returns:
        `kind`: "words", of which any other is unknown, or "subwords", which spell texts; `known`: their
        number, without special tokens.
    """
    content = json.loads(tokenizer.to_str())
    special = {*SPECIALS, content["model"].get("unk_token"), *(t["content"] for t in content["added_tokens"])}
    kind = "words" if content["model"].get("type") == "WordLevel" else "subwords"
    return {"kind": kind, "known": len(set(tokenizer.get_vocab()) - special)}


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token of what a tokeniser cannot read; None where it spells everything, or leaves that out."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model.get("type") == "Unigram":
        return model["unk_id"] if type(model.get("unk_id")) is int else None
    if model.get("byte_fallback") or "ByteLevel" in json.dumps(content["pre_tokenizer"]):
        return None
    unknown = model.get("unk_token")
    return tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None
