"""Regular files and objects of a store, opened and nothing else, and why one could not be."""

from __future__ import annotations

import os
from typing import BinaryIO, Protocol

from cir_infer.errors import shown
from cir_infer.foreign import opened_file
from cir_infer.inputs.remote import is_address, opened_remote, remote_status

__all__ = ["Status", "opened", "size_of", "status_of", "why"]


class Status(Protocol):
    """What is known of a file, by the names of `os.stat`."""

    @property
    def st_size(self) -> int:
        """Bytes."""
        ...

    @property
    def st_mtime_ns(self) -> int:
        """When it was written."""
        ...


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file or an object, open for reading. Nothing else is: a pipe would wait for its writer.

    Raises:
        OSError: there is none, or it is no regular file.
        CirError: see `opened_remote`.
    """
    if isinstance(path, str) and is_address(path):
        return opened_remote(path)
    return opened_file(path)


def status_of(path: str) -> Status:
    """What is known of a file, or of an object by its address.

    Raises:
        OSError: there is none, or it does not say.
        CirError: see `remote_status`.
    """
    return remote_status(path) if is_address(path) else os.stat(path)  # noqa: PTH116


def size_of(file: BinaryIO) -> int:
    """The bytes of an open file, which stands where it stood."""
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size


def why(error: BaseException) -> str:
    """The reason in an error of the operating system, without the path, which the message names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeEncodeError):
        return "a name that the file system cannot have"
    return shown(error)
