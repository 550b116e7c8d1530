"""Modifier texts as tokens: the bundle's own tokenizer, one caption or the list that its system joins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import TextInput
from cir_infer.bundle.tokenizer_check import MAX_CHARACTERS, check_tokenizer
from cir_infer.errors import BundleError, TextError, shown
from cir_infer.inputs.arguments import checked_list, plain_text
from cir_infer.inputs.unknown_words import Together, UnknownWords, named, said_together
from cir_infer.processes.ending import native_call

__all__ = ["ReadText", "Text", "TextReader", "Tokens"]

Text: TypeAlias = "str | Sequence[str]"
"""A modifier text, or a list of captions that the bundle joins as its system's authors do."""


class ReadText(NamedTuple):
    """One text as tokens.

    Attributes:
        ids: the tokens.
        unknown: words of the text that became the unknown token, each once.
    """

    ids: list[int]
    unknown: tuple[str, ...]


class Tokens(NamedTuple):
    """A batch of token sequences.

    Attributes:
        ids: int32 (n, T), rows filled up with the pad id; T is that of the longest text, or the bundle's
            where it says that texts have a fixed length.
        lengths: int32 (n,), the tokens of each row without that filling.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


class TextReader:
    """Turns texts into tokens. Threads may share one.

    A word outside the vocabulary becomes the unknown token, which the model cannot tell from any other
    such word. It is named in the log, once for each text and in one line for texts that are read together,
    and in what `read_one` returns.

    Args:
        tokenizer: the bundle's tokenizer.json (`tokenizers` format; text cleaning is inside).
        spec: the manifest's `text`.
        domain: what the model was trained on, in words, to be named with what it does not know.
        words: how many it knows, special tokens aside, where the bundle says so.

    Attributes:
        vocabulary: how many tokens the model knows.

    Raises:
        BundleError: the tokenizer cannot be read, or could take more than `check_tokenizer` allows.
    """

    def __init__(
        self, tokenizer: bytes, spec: TextInput, domain: object = None, words: object = None
    ) -> None:
        from tokenizers import Tokenizer

        check_tokenizer(tokenizer)
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        except Exception as error:  # the library raises plain Exception
            raise BundleError(
                f"tokenizer.json cannot be read ({shown(error)}); export the model again"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._spec = spec
        self.vocabulary: int = self._tokenizer.get_vocab_size()
        self._unknown_words = UnknownWords(self.vocabulary, domain, words)

    def log_no_text(self) -> None:
        """Name unknown words in what is returned alone: whoever keeps the log may not see what others ask."""
        self._unknown_words.logged = False

    def read(self, texts: Iterable[Text], together: Together | None = None) -> Tokens:
        """Tokens of a batch of texts.

        Args:
            texts: they.
            together: of more texts that are read with them, see `read_one`; these by themselves otherwise.

        Raises:
            TextError: a text is empty, has nothing that the model can read, or is too long.
            UsageError: one text was passed where a list of them is meant.
        """
        texts = checked_list("texts", texts, "text")
        with said_together(together) as all_of_them:
            reads = [self.read_one(text, all_of_them) for text in texts]
        return self.batch(reads)

    def sample(self, tokens: int) -> ReadText:
        """What may be a text, of no meaning: so many tokens, or as many as one may have."""
        # The first ids are special tokens and a few words; a vocabulary of attributes has few in all.
        ids = [(number + 1) % min(self.vocabulary, 5) for number in range(min(tokens, self._spec.max_tokens))]
        return ReadText(ids, ())

    def batch(self, reads: Sequence[ReadText]) -> Tokens:
        """Several texts in one array."""
        rows = [read.ids for read in reads]
        if len(rows) == 1 and not self._spec.fixed_length:
            return Tokens(np.array(rows, np.int32), np.array([len(rows[0])], np.int32))
        lengths = np.array([len(row) for row in rows], np.int32)
        width = self._spec.max_tokens if self._spec.fixed_length else max(lengths, default=0)
        ids = np.full((len(rows), width), self._spec.pad_id, np.int32)
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = row
        return Tokens(ids, lengths)

    def read_one(self, text: Text, together: Together | None = None) -> ReadText:
        """Tokens of one text, and its unknown words, of which the log tells.

        Args:
            text: it.
            together: of texts that are read together, which are news of one line; `UNSAID` for none.

        Raises:
            TextError: the text is empty, has nothing that the model can read, or is too long.
        """
        captions = self._captions(text)
        between = len(self._spec.captions) * (len(captions) - 1)
        if sum(map(len, captions)) + between > MAX_CHARACTERS:
            raise TextError(
                f"the text {named(captions)} has more than {MAX_CHARACTERS} characters; shorten it"
            )
        if not any(caption.strip() for caption in captions):
            raise TextError('the text is empty; say how the result should differ, e.g. "is red"')
        try:
            "".join(captions).encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which older tokenizers replace in silence
            raise TextError(f"the text {named(captions)} is not valid Unicode ({error.reason})") from None
        parts = self._join(captions)
        encoding = self._encode(parts, captions)
        words = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        if not words:
            raise TextError(
                f"nothing in the text {named(captions)} can be read by this model; it knows words in the "
                "language and script of its training texts"
            )
        ids = list(encoding.ids)  # the library makes its lists anew whenever it is asked
        if len(ids) > self._spec.max_tokens:
            raise TextError(
                f"the text {named(captions)} has {len(ids):,} tokens and the model reads at most "
                f"{self._spec.max_tokens}; shorten it"
            )
        unknown: tuple[str, ...] = ()
        places = [place for place in words if ids[place] == self._spec.unk_id]
        if places:
            unknown = self._unknown(encoding, places, parts)
        self._unknown_words.found(captions, unknown, len(places) == len(words), together)
        return ReadText(ids, unknown)

    def read_rest(self, text: Text) -> ReadText | None:
        """Tokens of what is left of a text that was read, after something was taken out of it.

        Nothing is logged. Where nothing is left, the tokens that stand around every text are; None where
        there are none of them.
        """
        captions = self._captions(text)
        ids = list(self._encode(self._join(captions), captions).ids)
        return ReadText(ids, ()) if ids else None

    def _encode(self, parts: tuple[str, str | None], captions: list[str]) -> Any:
        try:
            with native_call:
                return self._tokenizer.encode(*parts)
        except Exception as error:
            raise TextError(f"the text {named(captions)} cannot be tokenised ({shown(error)})") from error
        except BaseException as error:
            # A tokenizer that contradicts itself makes its Rust code panic, which is no `Exception`.
            if type(error).__name__ != "PanicException":
                raise
            raise BundleError(
                f"the bundle's tokenizer contradicts itself ({shown(error)}); export the model again"
            ) from error

    def _unknown(self, encoding: Any, places: list[int], parts: tuple[str, str | None]) -> tuple[str, ...]:
        """The words behind unknown tokens, as they were typed, each once."""
        found: dict[str, None] = {}
        offsets, sides = encoding.offsets, encoding.sequence_ids
        for place in places:
            start, end = offsets[place]
            word = (parts[sides[place] or 0] or "")[start:end].strip()
            if word:
                found[word] = None
        return tuple(found)

    def _join(self, captions: list[str]) -> tuple[str, str | None]:
        rule = self._spec.captions
        if rule == "pair":
            return captions[0], captions[1] if len(captions) > 1 else None
        if rule == "and:clip4cir":
            if len(captions) == 1:
                return captions[0], None
            return f"{captions[0].strip('.?, ').capitalize()} and {captions[1].strip('.?, ')}", None
        return rule.join(captions), None

    def _captions(self, text: Text) -> list[str]:
        captions = [text] if isinstance(text, str) else text
        if isinstance(captions, np.ndarray) and captions.ndim == 1:
            captions = captions.tolist()
        if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
            raise TextError(f"a text is a string or a list of captions; got {shown(text)}")
        if not captions:
            raise TextError("the list of captions is empty; expected at least one")
        if len(captions) > 2 and self._spec.captions in ("pair", "and:clip4cir"):
            raise TextError(
                f"a list of {len(captions):,} captions ({named(list(captions[:3]))}); this model reads one "
                "or two, so join the others yourself"
            )
        return [plain_text(caption) for caption in captions]
