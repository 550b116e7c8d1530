"""When a process may be forked, and what a child may use.

SQLite has mutexes for all of a process. What another thread holds at the moment of a fork stays locked in
the child for ever. So a fork waits a moment for whoever has announced that he uses SQLite; and since other
parts of a program may use it too, a child tries once whether it works before it relies on it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cir_infer.processes.turns import Token

__all__ = [
    "announced",
    "another_forks",
    "are_awaited",
    "begin",
    "end",
    "forget",
    "forks_wait",
    "sqlite_works",
    "was_unseen",
]

_TRIAL = 5.0
"""Seconds after which a child takes SQLite to be locked for ever; it takes a millisecond."""

_announced: dict[int, weakref.ref[Token]] = {}
_forking = 0
"""The thread that forks at the moment."""
_process = os.getpid()
_works: list[bool] = [True]
"""Whether SQLite works in this process; empty where nobody has tried since it was forked."""


def announced(key: int, wait: bool = True) -> Token:
    """What forks of other threads wait for, as long as it lives.

    Args:
        key: the thread, or a negative number for what may come inside something else that a thread has
            announced.
        wait: come back when no other thread forks.
    """
    while True:
        token = Token()
        _announced[key] = weakref.ref(token)  # before the look, as forks do it the other way round
        if not wait or not another_forks():
            return token
        del token
        time.sleep(0.0005)


def forget(key: int) -> None:
    """Tidy up behind a token that is gone."""
    _announced.pop(key, None)


@contextmanager
def forks_wait() -> Iterator[None]:
    """Let forks of other threads wait for what uses SQLite by itself."""
    key = -threading.get_ident()
    token = announced(key)
    try:
        yield
    finally:
        del token
        forget(key)


def another_forks() -> bool:
    """Whether another thread forks at this moment."""
    return _forking not in (0, threading.get_ident())


def begin() -> None:
    """This thread forks."""
    global _forking
    _forking = threading.get_ident()


def are_awaited() -> bool:
    """Whether other threads have announced that they use SQLite."""
    me = (threading.get_ident(), -threading.get_ident())
    return any(key not in me and token() is not None for key, token in list(_announced.items()))


def end(in_child: bool) -> None:
    """The fork is over."""
    global _forking, _process
    _forking = 0
    if in_child:
        _process = os.getpid()
        _works.clear()
        _announced.clear()


def was_unseen() -> bool:
    """Whether this is the child of a fork that Python did not see."""
    return os.getpid() != _process


def sqlite_works() -> bool:
    """Whether SQLite can be used in this process."""
    if not _works:
        trial = threading.Thread(target=_try, daemon=True)
        trial.start()
        trial.join(_TRIAL)
        _works.append(False)  # where nobody has said True before
    return _works[0]


def _try() -> None:
    """Take every mutex that SQLite has for all of a process: of files, memory, pages, random numbers."""
    for name in (f"file:{os.devnull}?mode=ro", "file::memory:"):
        with suppress(sqlite3.Error):
            link = sqlite3.connect(name, uri=True)
            link.execute("CREATE TEMP TABLE t AS SELECT randomblob(16)")
            link.close()
    _works.append(True)
