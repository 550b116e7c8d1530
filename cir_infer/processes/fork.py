"""What a fork takes away. One mechanism for everything that owns threads, locks, sessions or a GPU.

A forked child has a copy of every object and none of the threads behind it, and a lock that another
thread held stays locked for ever. So whatever rests on threads is either made anew in the child
(`PerProcess`) or refused there (`ProcessBound`); it never waits for what is not there.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from cir_infer.errors import CirError, DeviceError

__all__ = ["PerProcess", "ProcessBound", "finalize_here"]

T = TypeVar("T")
P = ParamSpec("P")

_forks = 0
"""Forks between this process and the one that imported this module. Ids of processes are used again."""

_values: weakref.WeakSet[PerProcess[object]] = weakref.WeakSet()


class PerProcess(Generic[T]):
    """A value that every process makes for itself on first use: a lock, a pool of threads, a session.

    In a forked child the inherited value is neither used nor taken apart, because destructors wait for
    threads that are not there. Threads may share one.

        self._lock = PerProcess(threading.Lock)
        with self._lock.get(): ...

    Args:
        make: makes the value; called once in each process, and again after `drop`.
        inherited: a value that is there already, for this process.
    """

    def __init__(self, make: Callable[[], T], inherited: T | None = None) -> None:
        self._make = make
        self._held: T | None = inherited
        self._place = (os.getpid(), _forks)
        self._making = threading.RLock()
        _values.add(self)  # type: ignore[arg-type]

    def get(self) -> T:
        """The value of this process; whatever `make` raises."""
        held = self._held
        if held is not None and self._place == (os.getpid(), _forks):
            return held
        with self._making:
            self._leave()
            if self._held is None:
                self._held = self._make()
            return self._held

    def drop(self) -> T | None:
        """Forget the value of this process and return it, to be closed; None where there is none."""
        with self._making:
            self._leave()
            held, self._held = self._held, None
            return held

    def _leave(self) -> None:
        """Let go of a value that another process made, without taking it apart."""
        here = (os.getpid(), _forks)
        if self._place != here:
            if self._held is not None:
                _never_free(self._held)
            self._held, self._place = None, here


class ProcessBound:
    """Remembers which process made something that a forked child cannot use.

    Args:
        what: names it in the error, e.g. "the CUDA context of GPU 0".
        remedy: what to do instead, as it follows a semicolon.
        error: the type that `check` raises.
    """

    def __init__(self, what: str, remedy: str, error: type[CirError] = DeviceError) -> None:
        self._what, self._remedy, self._error = what, remedy, error
        self._place = (os.getpid(), _forks)

    @property
    def here(self) -> bool:
        """Whether this is the process that made it."""
        return self._place == (os.getpid(), _forks)

    def check(self) -> None:
        """Raise the error in any other process."""
        if not self.here:
            raise self._error(
                f"{self._what} was made by process {self._place[0]} and this is process {os.getpid()}, "
                f"forked from it; {self._remedy}"
            )


def finalize_here(
    owner: object, release: Callable[P, object], *args: P.args, **kwargs: P.kwargs
) -> weakref.finalize[Any, Any]:
    """As `weakref.finalize`, at the end of the interpreter too, but in no forked child.

    There what was to be released is not freed either: its destructors would turn to drivers that the child
    has not.
    """
    return weakref.finalize(owner, _release_in, (os.getpid(), _forks), lambda: release(*args, **kwargs))


def _release_in(place: tuple[int, int], release: Callable[[], object]) -> None:
    if place == (os.getpid(), _forks):
        release()
    else:
        _never_free(release)


def _never_free(value: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _after_fork_in_child() -> None:
    global _forks
    _forks += 1
    # Not on first use: the child may end without one, and the interpreter then takes everything apart.
    for value in list(_values):
        value._making = threading.RLock()
        value._leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
