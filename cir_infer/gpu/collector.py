"""Python's garbage collector kept still, e.g. while a capture goes on.

It runs wherever objects are made, and what it finds may hold memory of the GPU: to free that in the thread
that captures is refused, the capture is lost, and the memory as well.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

__all__ = ["collector_paused"]

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic collection inside; threads may overlap, and the last one to leave lets it go on."""
    global _pauses, _was_enabled
    with _lock:
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_enabled:
                gc.enable()
