"""Gives freed memory back to the machine, between two steps that each take much of it."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

__all__ = ["give_back"]


def give_back() -> None:
    """Let the C library return what is freed: of a session's memory glibc keeps up to half.

    Does nothing where the library knows no such call.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library; Windows has no `CDLL(None)`
        ctypes.CDLL(None).malloc_trim(0)
