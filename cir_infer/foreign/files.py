"""Files of strangers: regular ones and nothing else, as a pipe waits for its writer; texts up to a size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from cir_infer.errors import CirError, shown

__all__ = ["has_file", "lines_in", "no_file", "opened_file", "text_of"]

_MOST = 1 << 29
"""Bytes of a text, 512 MiB: the largest tables of published data sets have a tenth."""


def no_file(path: str | os.PathLike[str]) -> str:
    """What is wrong with a name that is no regular file's: nothing has it, or something else."""
    # No name makes these raise, as pathlib's would.
    if os.path.exists(path):  # noqa: PTH110
        return "is not a file"
    return "is a link to what is not there" if os.path.lexists(path) else "does not exist"


def has_file(path: str | os.PathLike[str], error: type[CirError]) -> bool:
    """Whether there is a regular file; what has its name and is none is refused, and not taken for nothing.

    Raises:
        CirError: of the type `error`: a folder, a pipe, a device, a link to what is not there.
    """
    if os.path.isfile(path):  # noqa: PTH113
        return True
    if os.path.lexists(path):
        raise error(f"{shown(Path(path))} {no_file(path)}; expected one, or nothing of this name")
    return False


def opened_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def text_of(path: str | os.PathLike[str], encoding: str = "utf-8-sig", most: int = _MOST) -> str:
    """What a text file holds; a byte order mark at its beginning is no part of it.

    Args:
        path: of the file.
        encoding: of the text.
        most: bytes that it may have.

    Raises:
        OSError: there is none, it is no regular file, or larger.
        UnicodeDecodeError: it is another text, or none.
    """
    with opened_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def lines_in(text: str) -> list[str]:
    """The lines of a text, without their ends.

    `str.splitlines` also ends a line at what is a character of it: a vertical tab, U+0085, U+2028.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]
