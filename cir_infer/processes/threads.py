"""A few threads that work beside the caller, in any phase of a program.

`concurrent.futures` refuses work once the main thread has come to its end, although other threads may go on
for hours, and waits at exit for whatever is queued. These threads do neither.
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

from cir_infer.processes.ending import ending

__all__ = ["Task", "Threads"]

T = TypeVar("T")
P = ParamSpec("P")
_Tasks: TypeAlias = "queue.SimpleQueue[Task[Any] | None]"

_PATIENCE = 1.0
"""Seconds after which whoever waits for work that nobody has begun does it."""


class Task(Generic[T]):
    """Work that was handed to `Threads`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._value: T
        self._error: BaseException | None = None
        self._claim = threading.Lock()
        self._is_done = False
        self._done = threading.Lock()
        self._done.acquire()

    def result(self) -> T:
        """Wait for the work, or do it where nobody does; return its result, or raise what it raised."""
        if not self._is_done and self._done.acquire(timeout=_PATIENCE):
            self._done.release()
        if not self._is_done:
            self.run()  # the thread for it may be gone: one ends where there is no memory for its first frame
        if not self._is_done:
            with self._done:
                pass
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # the error's traceback would hold this task, which holds the error
        return self._value

    def cancel(self) -> bool:
        """Do not begin the work; False where it has begun. Nobody may wait for what was cancelled."""
        claimed = self._claim.acquire(blocking=False)
        if claimed:
            self._work = None
        return claimed

    def run(self) -> None:
        """Do the work now, in this thread, unless another has begun it."""
        if not self._claim.acquire(blocking=False):
            return
        work, self._work = self._work, None
        assert work is not None
        try:
            self._value = work()
        except BaseException as error:
            self._error = error
        self._is_done = True
        self._done.release()


class Threads:
    """At most `count` daemon threads, started as they are needed. Belongs to one process, see `PerProcess`.

    Built of calls that an interrupt cannot leave half done, so that the next call finds it whole.

    Args:
        count: at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count, self._started, self._closed = count, 0, False
        self._process = os.getpid()
        self._tasks: _Tasks = queue.SimpleQueue()
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        weakref.finalize(self, self._tasks.put, None).atexit = False

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Have something done. Where no thread is there for it, it is done before this returns.

        So it is when the interpreter ends, and other threads are held back from native code; and in a forked
        child, where the threads of its parent are not.
        """
        task = Task(lambda: work(*args, **kwargs))
        late = ending() or self._process != os.getpid()
        if not late and self._worker():
            self._tasks.put(task)
        if late or not self._started or self._closed:
            task.run()
        return task

    def close(self) -> None:
        """Let the threads end, once they have done what was handed to them."""
        self._closed = True
        self._tasks.put(None)

    def _worker(self) -> bool:
        """Whether there is a thread; one more is started where all have work."""
        try:
            self._idle.get_nowait()
        except queue.Empty:
            if self._started < self._count:
                try:
                    _thread.start_new_thread(_serve, (self._tasks, self._idle))
                except RuntimeError:  # no more threads are allowed, or the interpreter ends
                    return self._started > 0
                self._started += 1
        return True


def _serve(tasks: _Tasks, idle: queue.SimpleQueue[None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task
        idle.put(None)
    tasks.put(None)  # for the next thread
