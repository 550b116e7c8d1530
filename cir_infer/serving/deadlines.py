"""Calls that are made at a time unless they are taken back, as nearly all are.

A timer of asyncio's is put into a heap, and one that was cancelled stays in it for a while: with several for
each request, they cost more than what some requests are for. Here those of about one time share a timer.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

__all__ = ["Deadline", "after"]

_STEP = 0.25
"""Seconds. A call comes at most so much later than it was wanted, and never earlier."""
_MOST_LEFT = 4096
"""Calls that were taken back and lie there still, at most, or as many as wait."""


class Deadline:
    """A call that may be taken back."""

    __slots__ = ("_call", "_owner")

    def __init__(self, owner: _Deadlines, call: Callable[[], None]) -> None:
        self._owner = owner
        self._call: Callable[[], None] | None = call

    @property
    def waits(self) -> bool:
        """Whether it was neither made nor taken back."""
        return self._call is not None

    def cancel(self) -> None:
        """Take it back; nothing happens where it was made already."""
        if self._call is not None:
            self._call = None
            self._owner.left_one()

    def pass_by(self) -> None:
        """Make it."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            call()
        except Exception as error:
            what = {"message": "a call that was due failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(what)


class _Deadlines:
    """Those of one event loop, by the step that they come in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop refers to this by its timers alone, which end.
        self._steps: dict[int, list[Deadline]] = {}
        self._begun = loop.time()
        self._count = self._left = 0  # of all, and of those that were taken back

    def add(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> Deadline:
        deadline = Deadline(self, call)
        self._count += 1
        number = int((loop.time() - self._begun + seconds) / _STEP) + 1
        step = self._steps.get(number)
        if step is None:
            self._steps[number] = [deadline]
            loop.call_at(self._begun + number * _STEP, self._pass, number)
        else:
            step.append(deadline)
        return deadline

    def _pass(self, number: int) -> None:
        step = self._steps.pop(number)
        waiting = [deadline for deadline in step if deadline.waits]
        self._count -= len(step)
        self._left -= len(step) - len(waiting)
        for deadline in waiting:
            deadline.pass_by()

    def left_one(self) -> None:
        """One was taken back. They are swept together where they are many."""
        self._left += 1
        if self._left > _MOST_LEFT and 2 * self._left > self._count:
            for step in self._steps.values():
                step[:] = [deadline for deadline in step if deadline.waits]
            self._count, self._left = sum(map(len, self._steps.values())), 0


_of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Deadlines] = weakref.WeakKeyDictionary()
_last: tuple[Callable[[], asyncio.AbstractEventLoop | None], _Deadlines | None] = (lambda: None, None)
"""The loop that asked last: there is mostly one."""


def after(loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> Deadline:
    """Have something called by an event loop.

    Args:
        loop: the running one.
        seconds: from now; up to a quarter more.
        call: takes nothing.
    """
    global _last
    of, found = _last
    if found is None or of() is not loop:
        found = _of.get(loop)
        if found is None:
            found = _of[loop] = _Deadlines(loop)
        _last = weakref.ref(loop), found
    return found.add(loop, seconds, call)
