"""Modifier texts as tokens: the bundle's own tokenizer, one caption or the list that its system joins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import TextInput
from cir_infer.errors import BundleError, TextError

__all__ = ["Text", "TextReader", "Tokens"]

Text: TypeAlias = "str | Sequence[str]"
"""A modifier text, or a list of captions that the bundle joins as its system's authors do."""

MAX_CHARACTERS = 100_000
"""Longer texts are refused before the tokenizer spends time on them."""

_log = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """A batch of token sequences.

    Attributes:
        ids: int32 (n, T), rows filled up with the pad id.
        lengths: int32 (n,), the tokens of each row.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


class TextReader:
    """Turns texts into tokens. Threads may share one.

    Args:
        tokenizer: the bundle's tokenizer.json (`tokenizers` format; text cleaning is inside).
        spec: the manifest's `text`.

    Raises:
        BundleError: the tokenizer cannot be read.
    """

    def __init__(self, tokenizer: bytes, spec: TextInput) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"tokenizer.json cannot be read ({error}); export the model again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._spec = spec

    def read(self, texts: Sequence[Text]) -> Tokens:
        """Tokens of a batch of texts.

        A word outside the vocabulary becomes the unknown token; when a whole text is made of such
        words, a warning is logged and the query is answered all the same.

        Raises:
            TextError: a text is empty, has nothing that the model can read, or is too long.
        """
        if isinstance(texts, str):
            raise TextError('expected a list of texts, got one text; pass ["..."]')
        rows = [self._encode(text) for text in texts]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), max(lengths, default=0)), self._spec.pad_id, np.int32)
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = row
        return Tokens(ids, lengths)

    def _encode(self, text: Text) -> list[int]:
        captions = _captions(text)
        shown = _shown(" / ".join(captions))
        if sum(map(len, captions)) > MAX_CHARACTERS:
            raise TextError(f"the text {shown} has more than {MAX_CHARACTERS} characters; shorten it")
        if not any(caption.strip() for caption in captions):
            raise TextError('the text is empty; say how the result should differ, e.g. "is red"')
        try:
            "".join(captions).encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which older tokenizers replace in silence
            raise TextError(f"the text {shown} is not valid Unicode ({error.reason})") from None
        first, second = self._join(captions)
        try:
            encoding = self._tokenizer.encode(first, second)
        except Exception as error:
            raise TextError(f"the text {shown} cannot be tokenised ({error})") from error
        except BaseException as error:
            # A tokenizer that contradicts itself makes its Rust code panic, which is no `Exception`.
            if type(error).__name__ != "PanicException":
                raise
            raise BundleError(
                f"the bundle's tokenizer contradicts itself ({error}); export the model again"
            ) from error
        words = [
            token
            for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            if not special
        ]
        if not words:
            raise TextError(
                f"nothing in the text {shown} can be read by this model; it knows words in the language "
                "and script of its training texts"
            )
        if len(encoding.ids) > self._spec.max_tokens:
            raise TextError(
                f"the text {shown} has {len(encoding.ids)} tokens and the model reads at most "
                f"{self._spec.max_tokens}; shorten it"
            )
        if self._spec.unk_id is not None and all(word == self._spec.unk_id for word in words):
            _log.warning("no word of the text %s is in the model's vocabulary; the answer ignores it", shown)
        return list(encoding.ids)

    def _join(self, captions: list[str]) -> tuple[str, str | None]:
        rule = self._spec.captions
        if rule == "pair":
            return captions[0], captions[1] if len(captions) > 1 else None
        if rule == "and:clip4cir":
            if len(captions) == 1:
                return captions[0], None
            return f"{captions[0].strip('.?, ').capitalize()} and {captions[1].strip('.?, ')}", None
        return rule.join(captions), None


def _captions(text: Text) -> list[str]:
    captions = [text] if isinstance(text, str) else text
    if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
        raise TextError(f"a text is a string or a list of captions; got {type(text).__name__}")
    if not captions:
        raise TextError("the list of captions is empty; expected at least one")
    return list(captions)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
