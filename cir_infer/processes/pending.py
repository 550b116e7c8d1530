"""Work that may be done beside the caller, from when it suits him."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from cir_infer.processes.threads import Task, Threads

__all__ = ["Pending"]

T = TypeVar("T")


class Pending(Generic[T]):
    """Work that another thread does once it is begun. Belongs to one thread.

    Args:
        work: is done once.
        threads: gives those that do it; None leaves it to whoever wants the result.
    """

    def __init__(self, work: Callable[[], T], threads: Callable[[], Threads] | None = None) -> None:
        self._work, self._threads = work, threads
        self._task: Task[T] | None = None

    def begin(self) -> None:
        """Have it done from now on; once it is begun this does nothing."""
        if self._task is None and self._threads is not None:
            self._task = self._threads().submit(self._work)

    def result(self) -> T:
        """What it gives, or the error that it raised; waited for, or done now where it was not begun."""
        return self._work() if self._task is None else self._task.result()
