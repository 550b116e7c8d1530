"""The file layer: every write, fsync, rename and removal of row files goes through here.

The order that makes a commit durable is the caller's (rows, folder, catalogue); what each step
needs from the operating system is here, with every failure told as a `GalleryError`.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError

__all__ = ["NewFile", "map_file", "remove", "rename", "sync_folder", "sync_tree", "told_as_gallery_error"]

_CHUNK = 8 << 20


@contextmanager
def told_as_gallery_error(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `GalleryError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise GalleryError(
                f"{path}: the disk is full, so {action} failed; free some space and try again "
                "(the gallery is as it was before)"
            ) from error
        raise GalleryError(f"{path}: {action} failed: {error.strerror or error}") from error


class NewFile:
    """A file being written once, front to back, with the sha256 of what went in.

    The file appears under its final name at once; nothing refers to it until the catalogue does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes | npt.NDArray[Any]) -> None:
        """Append bytes, or the bytes of a C-contiguous array."""
        view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data)
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            self._hash.update(piece)
            self.bytes += len(piece)
            while piece:
                piece = piece[os.write(self._fd, piece) :]

    def sync(self) -> str:
        """Put everything on the disk; returns the sha256 in hexadecimal."""
        os.fsync(self._fd)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Make everything below a folder durable."""
    for path in (*folder.rglob("*"), folder):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def rename(old: Path, new: Path) -> None:
    """Rename and make the new name durable."""
    old.rename(new)
    sync_folder(new.parent)


def remove(path: Path) -> None:
    """Remove a file if it is there; failing to is no error, for it is swept later."""
    with suppress(OSError):
        path.unlink()


def map_file(path: Path) -> mmap.mmap:
    """A regular file, not a symbolic link, mapped for reading.

    Raises:
        GalleryError: the file is missing, empty, unreadable, a link or no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "it is a symbolic link" if error.errno == errno.ELOOP else (error.strerror or str(error))
        raise GalleryError(
            f"{path}: this part of the gallery cannot be read ({hint}); restore the gallery from a copy"
        ) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise GalleryError(
                f"{path}: found {'an empty file' if stat.S_ISREG(status.st_mode) else 'no regular file'}, "
                "expected gallery rows; restore the gallery from a copy"
            )
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise GalleryError(f"{path}: cannot be memory-mapped: {error}") from error
    finally:
        os.close(fd)
