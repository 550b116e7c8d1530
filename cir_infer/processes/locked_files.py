"""Files that are opened for the sake of a lock on them, which no forked child may keep.

A lock of `flock`, or of an open file description, belongs to what was opened. A forked child has a copy of
the descriptor and so goes on holding what the parent has let go, as long as it lives. So a child closes its
copies before it does anything else, and a fork waits while a file is on its way from the system to the list.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from cir_infer.processes.announcing import announced

__all__ = ["locked_file"]


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


def _after_fork_in_child() -> None:
    for file in list(_files):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
