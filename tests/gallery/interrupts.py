"""Raise an exception, or do something, before a chosen instruction of Python, in whatever frame it is."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


def _interrupt() -> None:
    raise Interrupt


class Bomb:
    """Counts instructions of everything that is called, and raises `Interrupt` before one of them.

    Args:
        at: before which.
        only: a part of the names of files; instructions of other files are not counted.
        strike: what happens there instead of an `Interrupt`.

    Attributes:
        count: how many instructions there have been.
        fired: whether it was reached. In a finalizer Python prints the exception and goes on.
        last: whether the last one that was counted was the return of the outermost function. Its result
            is made, and no code behind it could say anything any more.
    """

    def __init__(
        self, at: int = 0, only: tuple[str, ...] = ("",), strike: Callable[[], None] = _interrupt
    ) -> None:
        self.at = at
        self._strike = strike
        self._only = only
        self.count = 0
        self.fired = self.last = False
        self._outermost: FrameType | None = None

    def __call__(self, work: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return next(_apart(work))
        finally:
            sys.settrace(before)
            self._outermost = None  # a frame holds all that was in it

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if self._outermost is None:
            if frame.f_code.co_name in ("<lambda>", "_apart"):
                return None
            self._outermost = frame
        if not any(part in frame.f_code.co_filename for part in self._only):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                code = frame.f_code.co_code[frame.f_lasti]
                self.last = frame is self._outermost and code in _RETURNS
                self.fired, self._outermost = True, None
                self._strike()
        return self._trace


def _apart(work: Callable[[], Any]) -> Iterator[Any]:
    """Work with exceptions of its own.

    Python cleans up behind `except` by instructions that nothing protects. An exception before one of
    them, which only a tracer can raise, leaves the handled one, and all that its frames hold, with the
    generator that runs, or else with the thread for good.
    """
    yield work()


def _codes() -> set[int]:
    import opcode

    return {number for name, number in opcode.opmap.items() if name.startswith("RETURN_")}


_RETURNS = _codes()


def descriptors() -> set[str]:
    """What this process has open, after what nobody refers to is gone."""
    gc.collect()
    found: set[str] = set()
    if sys.platform != "linux":
        return found
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return found
