"""Steps that no fork may cut in two are announced; a fork of another thread waits a moment for them.

A step that fails lets go of its announcement itself (`finally: del token`): its frame lives on in the error's
traceback, as long as somebody keeps that, and forks would wait for it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cir_infer.processes.turns import Token

__all__ = ["PATIENCE", "announced", "another_forks", "are_awaited", "begin", "forks_wait", "wait_while"]

PATIENCE = 2.0
"""Seconds that a fork waits for what other threads have announced."""

_announced: dict[weakref.ref[Token], int] = {}
"""What goes on, with its thread."""
_forking: dict[int, float] = {}
"""The threads that fork at the moment, and until when that is believed: an interrupt may come before the
first instruction of what runs at the end of a fork, and Python goes on as if that had run."""


def announced(holds: Callable[[], bool] | None = None) -> Token:
    """What forks of other threads wait for, as long as it lives. Comes back when no other thread forks.

    Args:
        holds: whether this thread has something else that the fork waits for; then it is the fork that waits,
            as it is inside something that this thread has announced.
    """
    me = threading.get_ident()
    while True:
        token = Token()
        try:
            _announced[weakref.ref(token, _forget)] = me  # before the look: forks do it the other way round
            if not another_forks() or _count(lambda thread: thread == me) > 1 or (holds and holds()):
                return token
        finally:
            del token
        time.sleep(0.0005)


@contextmanager
def forks_wait() -> Iterator[None]:
    """Let forks of other threads wait for the block."""
    token = announced()
    try:
        yield
    finally:
        del token


def another_forks() -> bool:
    """Whether another thread forks at this moment."""
    if not _forking:
        return False
    me, now = threading.get_ident(), time.monotonic()
    return any(thread != me and now < until for thread, until in _forking.copy().items())


def begin() -> None:
    """This thread forks: it waits for others as long as `PATIENCE`, and is done soon after."""
    _forking[threading.get_ident()] = time.monotonic() + 2 * PATIENCE


def are_awaited() -> bool:
    """Whether other threads have announced something that still goes on."""
    me = threading.get_ident()
    return _count(lambda thread: thread != me) > 0


def wait_while(busy: Callable[[], bool]) -> None:
    """Wait until others are done with something, for `PATIENCE` at most."""
    until = time.monotonic() + PATIENCE
    while busy() and time.monotonic() < until:
        time.sleep(0.0005)


def _count(wanted: Callable[[int], bool]) -> int:
    # A copy is made in one step; a list of items is not, where the collector may run between two of them.
    return sum(wanted(thread) for token, thread in _announced.copy().items() if token() is not None)


def _forget(token: weakref.ref[Token]) -> None:
    _announced.pop(token, None)


def _before_fork() -> None:
    begin()
    wait_while(are_awaited)


def _after_fork_in_parent() -> None:
    _forking.pop(threading.get_ident(), None)


def _after_fork_in_child() -> None:
    _forking.clear()
    _announced.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
