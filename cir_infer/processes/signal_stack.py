"""The stack on which a thread takes signals, as it is to stay while a library is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["signal_stack_kept"]


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """What is loaded meanwhile leaves this thread the signal stack that it had, or none.

    OpenVINO (2026.4) gives the thread that loads it one of its own, and unmaps that wherever it ends. Where
    that is another thread, the next signal ends the process, for Python's handlers run on such a stack.
    """
    if sys.platform != "linux":  # whose fields have another order
        yield
        return
    change = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = change(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            change(ctypes.byref(before), None)
