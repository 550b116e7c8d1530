"""What a forked child may use of SQLite.

SQLite has mutexes for all of a process. What another thread holds at the moment of a fork stays locked in
the child for ever. So a fork waits a moment for whoever has announced that he uses SQLite; and since other
parts of a program may use it too, a child tries once whether it works before it relies on it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress

from cir_infer.errors import GalleryError, shown

__all__ = ["begin_in_child", "sqlite_works", "was_unseen"]

_TRIAL = 5.0
"""Seconds after which a child takes SQLite to be locked for ever; it takes a millisecond."""

_process = os.getpid()
_works: list[bool] = [True]
"""Whether SQLite works in this process; empty where nobody has tried since it was forked."""


def begin_in_child() -> None:
    """This process is the child of a fork."""
    global _process
    _process = os.getpid()
    _works.clear()


def was_unseen() -> bool:
    """Whether this is the child of a fork that Python did not see."""
    return os.getpid() != _process


def sqlite_works() -> bool:
    """Whether SQLite can be used in this process.

    Raises:
        GalleryError: there is no thread to try it in.
    """
    if not _works:
        trial = threading.Thread(target=_try, daemon=True)
        try:
            trial.start()
        except RuntimeError as error:
            raise GalleryError(
                f"a forked child tries in a thread whether SQLite works, and there is none ({shown(error)}); "
                "raise the limit of processes (ulimit -u, or the container's)"
            ) from error
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
