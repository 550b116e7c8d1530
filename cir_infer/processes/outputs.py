"""Files that take the place of what has their name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["check_replaceable", "check_waits_for_nobody"]

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
