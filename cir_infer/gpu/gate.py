"""Who is inside the GPU's context, so that nobody is when the interpreter ends.

Python stops daemon threads wherever they next want to run, and inside PyCUDA that aborts the process; before
that, finalizers would free memory which those threads still use.
"""

from __future__ import annotations

import threading

from cir_infer.errors import DeviceError
from cir_infer.processes.fork import ProcessBound

__all__ = ["Gate"]

_PATIENCE_S = 10.0
"""Long for a query; whoever is inside for longer may be stuck, and the program has to end."""


class Gate:
    """Counts threads in and out; once closed, only the one that closed it comes in. No forked child does."""

    def __init__(self) -> None:
        self.process = ProcessBound(
            "the context of the GPU",
            "open the GPU in the process that uses it, e.g. with multiprocessing's start method 'spawn'",
        )
        self._changed = threading.Condition()
        self._inside = 0
        self._closed_by: int | None = None
        self._mine = threading.local()

    def enter(self) -> None:
        """Come in; as often as wanted, leaving as often.

        Raises:
            DeviceError: the gate is closed, or this process was forked from the one that made it.
        """
        self.process.check()  # before the lock, which another thread may have held at the fork
        depth = getattr(self._mine, "depth", 0)
        if depth == 0:
            with self._changed:
                if self._closed_by not in (None, threading.get_ident()):
                    raise DeviceError("the program is ending, and the GPU is not used any more")
                self._inside += 1
        self._mine.depth = depth + 1

    def leave(self) -> None:
        """Go out again."""
        self._mine.depth -= 1
        if self._mine.depth == 0:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self, patience: float = _PATIENCE_S) -> None:
        """Let nobody else in, and wait for those who are. Nothing to do in a forked child."""
        if not self.process.here:
            return
        with self._changed:
            self._closed_by = threading.get_ident()
            mine = 1 if getattr(self._mine, "depth", 0) else 0
            self._changed.wait_for(lambda: self._inside == mine, patience)
