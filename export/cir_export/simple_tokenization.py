"""The tokeniser of google/tirg as one `tokenizers` JSON.

Characters beyond ASCII are dropped, letters become small, punctuation is deleted, the rest is split at
white space. There are no special tokens but `<UNK>`.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

__all__ = ["UNKNOWN", "build_simple_tokenizer", "simple_text", "words_of_texts"]

UNKNOWN = "<UNK>"
"""The word of id 0. Cleaning deletes angle brackets, so no text can type it."""


def build_simple_tokenizer(vocabulary: Mapping[str, int]) -> Tokenizer:
    """A tokeniser over a vocabulary in which `UNKNOWN` is one of the words."""
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _cleaning(), pre_tokenizers.WhitespaceSplit()
    return tokenizer


def simple_text(max_tokens: int = 512) -> dict[str, Any]:
    """`text` of a bundle's manifest; two captions are joined with a space."""
    return {"pad_id": 0, "unk_id": 0, "max_tokens": max_tokens, "captions": " "}


def words_of_texts(texts: Iterable[str]) -> list[str]:
    """Every word of the texts, in the order in which it first occurs."""
    cleaning, splitting = _cleaning(), pre_tokenizers.WhitespaceSplit()
    words: dict[str, None] = {}
    for text in texts:
        words.update((word, None) for word, _ in splitting.pre_tokenize_str(cleaning.normalize_str(text)))
    return list(words)


def _cleaning() -> normalizers.Normalizer:
    punctuation = "".join(f"\\x{ord(character):02x}" for character in string.punctuation)
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[^\x00-\x7f]"), ""),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{punctuation}]"), ""),
            # Python splits at the four ASCII separators, too.
            normalizers.Replace(Regex(r"[\x1c-\x1f]"), " "),
        ]
    )
