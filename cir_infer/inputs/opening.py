"""Regular files, opened and nothing else, and why one could not be."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from cir_infer.errors import shown

__all__ = ["opened", "why"]


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading. Nothing else is opened: a pipe would wait for its writer.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def why(error: BaseException) -> str:
    """The reason in an error of the operating system, without the path, which the message names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeEncodeError):
        return "a name that the file system cannot have"
    return shown(error)
