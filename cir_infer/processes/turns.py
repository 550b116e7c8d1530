"""Taking turns: a mutex that an interrupt cannot leave locked."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["Claim", "Token", "Turn"]

P = ParamSpec("P")
T = TypeVar("T")

_PAUSE = 0.0005


class Token:
    """Lives as long as the call that waits for something, or has it."""


class Claim:
    """What a call waits for or has, for others to see: it ends with the call, however that ends.

    Attributes:
        over: set when the call is done with it.
    """

    def __init__(self, token: Token) -> None:
        self._token = weakref.ref(token)
        self._process = os.getpid()
        self.over = False

    @property
    def held(self) -> bool:
        """Whether its call may still be at work: not over, not gone, not lost in a fork."""
        return not self.over and self._token() is not None and self._process == os.getpid()


class Turn:
    """Lets one thread at a time do something.

    A `threading.Lock` in a `with` statement stays locked when an exception (Ctrl-C, a tracer) comes
    between the last instruction of the block and the first of its end. Here every way out gives the turn
    back, twice over, and a turn whose thread or process is gone counts as given back.
    """

    def __init__(self) -> None:
        # Turns by number; the highest is the current one. Whoever takes the next sets it in one call of C.
        self._turns: dict[int, Claim] = {}

    def take(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something when it is this thread's turn; not to be nested."""
        token = Token()
        mine = Claim(token)
        try:
            try:
                self._wait(mine)
                result = work(*args, **kwargs)
                mine.over = True
                return result
            except BaseException:
                mine.over = True
                raise
        except BaseException:
            mine.over = True
            raise

    def take_if_free(self, work: Callable[[], object]) -> None:
        """Do something unless it is another thread's turn at this moment; not to be nested."""
        token = Token()
        mine = Claim(token)
        try:
            try:
                if self._wait(mine, patient=False):
                    work()
            finally:
                mine.over = True
        finally:
            mine.over = True

    def _wait(self, mine: Claim, patient: bool = True) -> bool:
        """Whether it is the call's turn now; else it is another's, for whom only the patient wait."""
        while True:
            last = max(list(self._turns), default=0)  # a list is made in one step, also without a GIL
            claim = self._turns.get(last)
            if claim is not None and claim.held:
                if not patient:
                    return False
                time.sleep(_PAUSE)
            elif self._turns.setdefault(last + 1, mine) is mine:
                if max(list(self._turns), default=0) == last + 1:
                    break
                # Others have come and gone since we looked.
                self._turns.pop(last + 1, None)
        for number in [number for number in list(self._turns) if number <= last]:
            self._turns.pop(number, None)
        return True
