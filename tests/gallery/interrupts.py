"""Raise an exception, or do something, before a chosen instruction of Python, in whatever frame it is."""

from __future__ import annotations

import gc
import opcode
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
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
        last: whether the last one that was counted was the return of the outermost function in these files.
            Its result is made, and no code behind it could say anything any more.
    """

    def __init__(
        self, at: int = 0, only: tuple[str, ...] = ("",), strike: Callable[[], None] = _interrupt
    ) -> None:
        self.at = at
        self._strike = strike
        self._only = only
        self.count = 0
        self.fired = self.last = False
        self._outermost: FrameType | CodeType | None = None

    def __call__(self, work: Callable[[], Any]) -> Any:
        if sys.version_info >= (3, 14):
            return self._monitored(work)
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return next(_apart(work))
        finally:
            sys.settrace(before)
            self._outermost = None  # a frame holds all that was in it

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if self._outermost is None:
            if frame.f_code.co_name in ("<lambda>", "_apart") or not self._is_ours(frame.f_code):
                return None
            self._outermost = frame
        if not self._is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self._before_one(frame, frame.f_code, frame.f_lasti)
        return self._trace

    def _is_ours(self, code: CodeType) -> bool:
        return any(part in code.co_filename for part in self._only)

    def _before_one(self, place: FrameType | CodeType, code: CodeType, at: int) -> None:
        self.count += 1
        if self.count == self.at:
            # A function without a result may return by two instructions: None, and the return.
            operations = code.co_code[at : at + 4 : 2]
            returns = operations[operations[0] == _CONSTANT :][:1]
            self.last = place is self._outermost and returns in _RETURNS
            self.fired, self._outermost = True, None
            self._strike()

    if sys.version_info >= (3, 14):

        def _monitored(self, work: Callable[[], Any]) -> Any:
            """A tracer of Python 3.14 meets no instruction of a function's first call: it asks too late."""
            monitoring, thread = sys.monitoring, threading.get_ident()
            outside: set[CodeType] = set()  # around the outermost function

            def before_instruction(code: CodeType, offset: int) -> None:
                if threading.get_ident() != thread or code.co_filename == __file__ or code in outside:
                    return
                if self._outermost is None:
                    if code.co_name == "<lambda>" or not self._is_ours(code):
                        outside.add(code)
                        return
                    self._outermost = code
                if self._is_ours(code):
                    try:
                        self._before_one(code, code, offset)
                    except BaseException:
                        monitoring.set_events(_TOOL, 0)  # as a tracer is gone that raises
                        raise

            instruction = monitoring.events.INSTRUCTION
            monitoring.use_tool_id(_TOOL, "bomb")
            try:
                monitoring.register_callback(_TOOL, instruction, before_instruction)
                monitoring.set_events(_TOOL, instruction)
                return next(_apart(work))
            finally:
                monitoring.set_events(_TOOL, 0)
                monitoring.register_callback(_TOOL, instruction, None)
                monitoring.free_tool_id(_TOOL)
                self._outermost = None


def _apart(work: Callable[[], Any]) -> Iterator[Any]:
    """Work with exceptions of its own.

    Python cleans up behind `except` by instructions that nothing protects. An exception before one of
    them, which only a tracer can raise, leaves the handled one, and all that its frames hold, with the
    generator that runs, or else with the thread for good.
    """
    yield work()


_RETURNS = {bytes([number]) for name, number in opcode.opmap.items() if name.startswith("RETURN_")}
_CONSTANT = opcode.opmap["LOAD_CONST"]
_TOOL = 4
"""A number for `sys.monitoring` that no debugger, profiler or coverage takes."""


def set_others_aside() -> None:
    """From now on the collector does not walk what other tests left here, up to a second each time.

    It stays aside: a thaw would bring back all that tests/conftest.py has put there, for every later test.
    """
    gc.collect()
    gc.freeze()


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
