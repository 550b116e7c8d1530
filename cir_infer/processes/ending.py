"""Native calls at the end of the interpreter.

When the interpreter ends, a daemon thread that comes back from native code and wants to go on in Python is
ended inside that native code. C++ that has destructors to run does not survive it: the process aborts, after
a program that did everything right. So native calls are counted, and the end waits for those that run.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from types import TracebackType

__all__ = ["NativeCall", "ending", "native_call"]

_PATIENCE = 60.0
"""Seconds that the end of the interpreter waits for native calls."""

_inside: dict[int, int] = {}
"""Depth of native calls by thread. Each thread writes its own entry only, so no lock is needed."""

_ender: int | None = None
"""The thread that ends the interpreter, once it does."""


class NativeCall:
    """A block that runs native code. Free of state: one object serves every call of every thread."""

    def __enter__(self) -> None:
        me = threading.get_ident()
        _inside[me] = _inside.get(me, 0) + 1
        if _ender is not None and _ender != me and _inside[me] == 1:
            del _inside[me]
            _wait_for_ever()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        me = threading.get_ident()
        depth = _inside.get(me, 0) - 1
        if depth > 0:
            _inside[me] = depth
        else:
            _inside.pop(me, None)


native_call = NativeCall()


def ending() -> bool:
    """Whether the interpreter ends, so that only the thread that ends it begins native calls."""
    return _ender is not None


def _wait_for_ever() -> None:
    """Only daemon threads come here; the process ends with them waiting."""
    closed = threading.Lock()
    closed.acquire()
    closed.acquire()


def _end() -> None:
    global _ender
    _ender = threading.get_ident()
    until = time.monotonic() + _PATIENCE
    # An interrupt may have left this thread's own entry behind.
    while any(thread != _ender for thread in list(_inside)) and time.monotonic() < until:
        time.sleep(0.001)


def _forget() -> None:
    global _ender
    _ender = None
    _inside.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
