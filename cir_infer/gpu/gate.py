"""Who is inside the GPU's context, so that nobody is when the interpreter ends.

Python stops daemon threads wherever they next want to run, and inside PyCUDA that aborts the process; before
that, finalizers would free memory which those threads still use.
"""

from __future__ import annotations

import threading
import time

from cir_infer.errors import DeviceError
from cir_infer.processes.fork import ProcessBound

__all__ = ["Gate"]

_PATIENCE_S = 10.0
"""Long for a query; whoever is inside for longer may be stuck, and the program has to end."""

_PAUSE = 0.001


class Gate:
    """Counts threads in and out; once closed, only the one that closed it comes in. No forked child does."""

    def __init__(self) -> None:
        self.process = ProcessBound(
            "the context of the GPU",
            "open the GPU in the process that uses it, e.g. with multiprocessing's start method 'spawn'",
        )
        # Interrupts leave a condition locked for ever; entries of a dictionary change by one call of C.
        self._inside: dict[int, int] = {}  # how often a thread has come in
        self._closed_by: int | None = None

    def enter(self) -> None:
        """Come in; as often as wanted, leaving as often.

        Raises:
            DeviceError: the gate is closed, or this process was forked from the one that made it.
        """
        self.process.check()
        me = threading.get_ident()
        depth = self._inside.get(me, 0)
        self._inside[me] = depth + 1  # first, so that whoever closes the gate from now on sees it
        if depth == 0 and self._closed_by not in (None, me):
            self._inside.pop(me, None)
            raise DeviceError("the program is ending, and the GPU is not used any more")

    def leave(self) -> None:
        """Go out again."""
        me = threading.get_ident()
        depth = self._inside.get(me, 0) - 1
        if depth > 0:
            self._inside[me] = depth
        else:
            self._inside.pop(me, None)

    def close(self, patience: float = _PATIENCE_S) -> None:
        """Let nobody else in, and wait for those who are. Nothing to do in a forked child."""
        if not self.process.here:
            return
        me = self._closed_by = threading.get_ident()  # first, see `enter`
        until = time.monotonic() + patience
        while any(thread != me for thread in list(self._inside)) and time.monotonic() < until:
            time.sleep(_PAUSE)
