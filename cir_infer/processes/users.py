"""Whoever uses what somebody may close: it is given back when the last of them is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import ParamSpec, TypeVar

from cir_infer.processes.turns import Claim, Token

__all__ = ["Users"]

P = ParamSpec("P")
T = TypeVar("T")


class Users:
    """Calls that use something.

    Not a count: an interrupt, or a fork while another thread is at work, would leave it too high.

    Args:
        give_back: gives it back; called once or more after `end`.
        refusal: makes the error of calls that begin after `end`; those that began before go on.
    """

    def __init__(self, give_back: Callable[[], None], refusal: Callable[[], Exception]) -> None:
        self._give_back, self._refusal = give_back, refusal
        self._claims: list[Claim] = []
        self._ended = False

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something with it.

        Raises:
            Exception: `refusal`.
        """
        token = Token()
        claim = Claim(token)
        self._claims.append(claim)
        try:
            self.check()
            return work(*args, **kwargs)
        finally:
            self._over(claim)

    def each(self, values: Iterator[T]) -> Iterator[T]:
        """Values that are made of it one after the other, used from the first to the last.

        Raises:
            Exception: `refusal`, before the first.
        """
        token = Token()
        claim = Claim(token)
        self._claims.append(claim)
        try:
            self.check()
            yield from values
        finally:
            self._over(claim)

    @property
    def ended(self) -> bool:
        """Whether it is given back, or will be."""
        return self._ended

    def check(self) -> None:
        """Refuse whoever begins now, where that is too late.

        Raises:
            Exception: `refusal`.
        """
        # Asked behind the claim: `end` is said before claims are looked at, so one of the two sees the other.
        if self._ended:
            raise self._refusal()

    def end(self) -> None:
        """It is given back now, or when all calls are done that use it."""
        self._ended = True
        self._last()

    def _over(self, claim: Claim) -> None:
        claim.over = True
        with suppress(ValueError):  # another thread was first
            self._claims.remove(claim)
        if self._ended:
            self._last()

    def _last(self) -> None:
        if not any(claim.held for claim in list(self._claims)):
            self._give_back()
