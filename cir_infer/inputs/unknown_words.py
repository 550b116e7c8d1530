"""Says in the log which words a model does not know: once for each text, one line for texts read together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cir_infer.errors import shown

__all__ = ["ALIKE", "UNSAID", "Together", "UnknownWords", "named", "said_together"]

ALIKE = "unknown words count as one and the same"
"""What a model makes of them: each becomes the tokenizer's unknown token, which moves the scores."""

_SAID = 4096
"""Texts whose unknown words were logged and are not logged again; after so many it begins anew."""

_NAMED = 20
"""Words that one line names."""

_log = logging.getLogger(__name__)


class UnknownWords:
    """The words that one model's texts had and it does not know. Threads may share one.

    Args:
        tokens: how many the model knows, special ones among them.
        domain: what the model was trained on, in words.
        words: how many it knows, where its bundle says so.

    Attributes:
        logged: whether the log may hold texts.
    """

    def __init__(self, tokens: int, domain: object = None, words: object = None) -> None:
        about = f" about {shown(domain, 60)}" if isinstance(domain, str) and domain else ""
        counted = f"{words:,} words" if type(words) is int and 0 < words <= tokens else f"{tokens:,} tokens"
        self._known = f"in the model's vocabulary of {counted}{about}"
        self._said: set[str] = set()
        self.logged = True

    def found(
        self,
        captions: Sequence[str],
        unknown: Sequence[str],
        none_known: bool,
        together: Together | None = None,
    ) -> None:
        """A text was read.

        Args:
            captions: the text.
            unknown: its words that the model does not know.
            none_known: it has no other words.
            together: the texts that are read together with it; None for a text by itself.
        """
        if together is UNSAID or not self.logged:
            return
        counted = None if together is None else together.counted.setdefault(self, _Counted())
        if counted is not None:
            counted.texts += 1
        if not (unknown or none_known):
            return
        new = self._is_new("\n".join(captions))
        if counted is not None:
            counted.add(new, named(captions), unknown, none_known)
        elif new:
            self._say_one(named(captions), unknown, none_known)

    def _is_new(self, text: str) -> bool:
        if text in self._said:
            return False
        if len(self._said) >= _SAID:
            self._said.clear()
        self._said.add(text)
        return True

    def _say_one(self, text: str, unknown: Sequence[str], none_known: bool) -> None:
        what = "no word" if none_known else "not every word"
        words = _listed([shown(word, 40) for word in unknown])
        _log.warning("%s of the text %s is %s; %s%s", what, text, self._known, ALIKE, words)

    def _say(self, counted: _Counted) -> None:
        if not counted.new or counted.first is None:
            return
        if counted.unread == 1:
            self._say_one(*counted.first)
            return
        words = [
            shown(word, 40) + (f" ({count:,} times)" if count > 1 else "")
            for word, count in counted.words.most_common()
        ]
        none = f", {counted.none_known:,} of them no other" if counted.none_known else ""
        _log.warning(
            "%s of %s texts have words that are not %s%s; %s%s",
            *(f"{counted.unread:,}", f"{counted.texts:,}", self._known, none, ALIKE, _listed(words)),
        )


class _Counted:
    """What was found in texts that are read together."""

    def __init__(self) -> None:
        self.texts = self.unread = self.none_known = 0
        self.new = False
        self.words: Counter[str] = Counter()
        self.first: tuple[str, Sequence[str], bool] | None = None

    def add(self, new: bool, text: str, unknown: Sequence[str], none_known: bool) -> None:
        self.new |= new
        self.unread += 1
        self.none_known += none_known
        self.words.update(unknown)
        self.first = self.first or (text, unknown, none_known)


class Together:
    """What was found in texts that are read together, by model.

    It is handed on: what a thread knows by itself, an interrupt may leave behind.
    """

    def __init__(self) -> None:
        self.counted: dict[UnknownWords, _Counted] = {}


UNSAID = Together()
"""For texts that try a model, which are no news."""


@contextmanager
def said_together(within: Together | None = None) -> Iterator[Together]:
    """What is read with this is news of one line, said at the end, whatever ends it.

    Args:
        within: what it is read together with; then it is said there.
    """
    if within is not None:
        yield within
        return
    together = Together()
    try:
        yield together
    finally:
        for words, counted in together.counted.items():
            words._say(counted)


def named(captions: Sequence[str]) -> str:
    """A text as a message names it."""
    return shown(" / ".join(caption[:60] for caption in captions[:4]), 60)


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED:,} more" if len(words) > _NAMED else ""
    return f": {', '.join(words[:_NAMED])}{more}" if words else ""
