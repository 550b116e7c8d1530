"""Files that are opened for the sake of a lock on them, which no forked child may keep.

A lock of `flock`, or of an open file description, belongs to what was opened. A forked child has a copy of
the descriptor and so goes on holding what the parent has let go, as long as it lives. So a child closes its
copies before it does anything else, and a fork waits while a file is on its way from the system to the list.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from cir_infer.errors import CirError
from cir_infer.processes.announcing import announced
from cir_infer.processes.folders import OpenFolder

__all__ = ["alone_in", "is_claimed", "locked_file"]


class _Closable(Protocol):
    def close(self) -> None: ...


P = ParamSpec("P")
F = TypeVar("F", bound=_Closable)

_files: weakref.WeakSet[_Closable] = weakref.WeakSet()


def locked_file(opened: Callable[P, F], *args: P.args, **kwargs: P.kwargs) -> F:
    """A file (or folder) to be locked, opened so that forked children do not share it.

    Args:
        opened: opens it; what it gives is closed by `close`, at the latest when it dies.
        args: of `opened`.
        kwargs: of `opened`.

    Raises:
        OSError: of `opened`.
    """
    token = announced()
    try:
        file = opened(*args, **kwargs)
        _files.add(file)
        return file
    finally:
        del token


def is_claimed(fd: int, path: Path) -> bool:
    """Lock what was made just now, and say whether it can be used: others remove what nobody holds.

    Args:
        fd: of it, new.
        path: where it was made.

    Returns:
        False where somebody took it for an old one in between, and removes it or has done so.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # where nothing can be locked nobody removes it either
    return _is_at(fd, path)


@contextmanager
def alone_in(folder: Path, error: type[CirError], what: str) -> Iterator[None]:
    """Be the only one to write into a folder for a long time: a training, the making of a data set.

    The lock is on the folder itself, so nothing is left there, and it dies with the process. A file system
    without locks has none.

    Args:
        folder: it is there.
        error: to raise.
        what: others may be doing there, e.g. "trains".

    Raises:
        CirError: of the type `error`, at once, where somebody else is; or it cannot be opened, or is removed
            meanwhile.
    """
    try:
        held = locked_file(OpenFolder, folder)
    except OSError as problem:
        raise error(f"{folder} cannot be opened: {problem.strerror}") from problem
    with closing(held):
        try:
            fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise error(
                f"{folder}: another process {what} there; wait until it has ended, or name another folder"
            ) from problem
        except OSError:
            pass  # there are no locks
        if not _is_at(held.fd, folder):  # the last one has just removed it, and a lock on it keeps nobody out
            raise error(f"{folder} was removed or replaced while it was being opened; try again")
        yield


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _after_fork_in_child() -> None:
    for file in list(_files):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
