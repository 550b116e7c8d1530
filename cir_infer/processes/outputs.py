"""Files that take the place of what has their name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from cir_infer.errors import UsageError, shown

__all__ = ["check_apart", "check_replaceable", "check_waits_for_nobody"]

_FOLDER = "it is a folder"


def check_waits_for_nobody(path: Path) -> None:
    """Refuse a name to which nobody can write, or only while somebody else reads; /dev/null is fine.

    Raises:
        OSError: a folder, a pipe or a socket has the name; links are followed.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise OSError(
            errno.EEXIST, _FOLDER if stat.S_ISDIR(mode) else "it is a pipe, no file", os.fspath(path)
        )


def check_replaceable(path: Path) -> None:
    """Refuse a name that no file may take: root could put one in the place of /dev/null, for every program.

    Raises:
        OSError: a folder, a device, a pipe or a socket has the name; links are followed.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing is there, or whatever is wrong with the name is told when it is written to
    if not stat.S_ISREG(mode):
        found = _FOLDER if stat.S_ISDIR(mode) else "it is a device or a pipe, no file"
        raise OSError(errno.EEXIST, found, os.fspath(path))


def check_apart(path: Path, read: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse to write to what is read: a model would be lost to what is made of it.

    Args:
        path: of what is written.
        read: whatever is read, by its name; None, names of nothing and folders are passed over.

    Raises:
        UsageError: one of them is that file, by another name or a link too.
    """
    for one in read:
        try:
            same = one is not None and path.is_file() and path.samefile(one)
        except (OSError, ValueError):
            continue
        if same:
            raise UsageError(
                f"{shown(os.fspath(path))} is read for what would take its place; choose another name"
            )
