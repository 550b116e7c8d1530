"""The file layer: every write, fsync, rename and removal of row files goes through here.

Files are named inside an open folder (`folder.Folder`), never through a link. The order that makes a
commit durable is the caller's (rows, folder, catalogue); what each step needs from the operating system
is here, with every failure told as a `GalleryError`.

An interrupt may come between any two instructions of Python. So a descriptor is taken and given to what
owns it by one call of C, and whatever owns one gives it back when it dies: nothing can be lost between.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import mmap
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, lack
from cir_infer.processes.folders import sync_folder

__all__ = [
    "NewFile",
    "exchange",
    "is_regular",
    "map_file",
    "open_as",
    "open_file",
    "reason",
    "remove",
    "sha256_of",
    "sync_tree",
    "told_as_gallery_error",
]

_CHUNK = 8 << 20
_HERE, _RENAME_EXCHANGE = -100, 2
"""AT_FDCWD and the flag of renameat2(2), which libraries of Linux have since 2018."""

F = TypeVar("F", bound=io.FileIO)


@contextmanager
def told_as_gallery_error(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `GalleryError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise GalleryError(
                f"{path}: the disk is full, so {action} failed; free some space and try again "
                "(the gallery is as it was before)"
            ) from error
        raise GalleryError(f"{path}: {action} failed: {reason(error)}") from error


def reason(error: OSError) -> str:
    """What the system says went wrong; where this process or the machine lacked something, what to do."""
    return lack(error) or error.strerror or str(error)


def open_file(name: str | Path, flags: int, folder: int | None = None) -> io.FileIO:
    """A file that is closed when the object is, at the latest when it dies; links are not followed.

    Args:
        name: of the file, inside `folder` where one is given.
        flags: as `os.open` takes them.
        folder: an open folder.

    Raises:
        OSError: it cannot be opened.
    """
    return open_as(io.FileIO, name, flags, folder)


def open_as(kind: type[F], name: str | Path, flags: int, folder: int | None = None) -> F:
    """The same, with a type of its own."""
    opening = partial(os.open, mode=0o644, dir_fd=folder)
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return next(map(kind, map(opening, (name,), (flags,))))


def is_regular(name: str, folder: int, absent: bool = False) -> bool:
    """Whether a folder holds a regular file of this name, and no link to one; `absent` where nothing is."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return absent
    except OSError:
        return False


class NewFile:
    """A file being written once, front to back, with the sha256 of what went in.

    The file appears under its final name at once; nothing refers to it until the catalogue does.
    """

    def __init__(self, name: str | Path, folder: int | None = None) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._file = open_file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder)

    def write(self, data: bytes | npt.NDArray[Any]) -> None:
        """Append bytes, or the bytes of a C-contiguous array."""
        view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data)
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            self._hash.update(piece)
            self.bytes += len(piece)
            while piece:
                piece = piece[os.write(self._file.fileno(), piece) :]

    def sync(self) -> str:
        """Put everything on the disk; returns the sha256 in hexadecimal."""
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        self._file.close()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()


def sha256_of(file: io.FileIO) -> str:
    """The sha256 of what is in an open file from here on, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(_CHUNK):
        digest.update(block)
    return digest.hexdigest()


def sync_tree(folder: Path) -> None:
    """Make everything below a folder durable. Not for the folder of a gallery that is open."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            with open_file(path, os.O_RDONLY) as file:
                os.fsync(file.fileno())


def exchange(path: Path, other: Path) -> None:
    """Exchange the names of two files or folders, at once where the system can.

    Raises:
        OSError: it failed, and the names are what they were.
    """
    swap = getattr(_libc(), "renameat2", None)
    names = os.fsencode(path), os.fsencode(other)
    if swap is not None and swap(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0:
        return
    aside = other.with_name(f"{path.name}.aside")
    try:
        other.rename(aside)
        path.rename(other)
        aside.rename(path)
    except BaseException:
        with suppress(OSError):  # unless the new one has the name
            aside.rename(path if other.exists() else other)
        raise


def remove(name: str | Path, folder: int | None = None) -> None:
    """Remove a file if it is there; failing to is no error, for it is swept later."""
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)


class _Mapping:
    """A file in memory, without a descriptor: `mmap.mmap` keeps one for each until Python 3.13."""

    def __init__(self, fd: int, size: int) -> None:
        self._held: list[int] = []
        self._size = size
        weakref.finalize(self, _unmap, self._held, size).atexit = False
        place = (None,), (size,), (mmap.PROT_READ,), (mmap.MAP_SHARED,), (fd,), (0,)
        self._held.extend(map(_libc().mmap, *place))
        if self._held[0] == -1:
            self._held.clear()
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "data": (self._held[0], True), "shape": (self._size,), "typestr": "|u1"}


_functions: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL:
    if not _functions:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_ssize_t
        library.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
        ]  # fmt: skip
        library.munmap.argtypes = [ctypes.c_ssize_t, ctypes.c_size_t]
        _functions.append(library)
    return _functions[0]


def _unmap(held: list[int], size: int) -> None:
    any(map(_libc().munmap, map(list.pop, repeat(held, len(held))), (size,)))


def map_file(name: str | Path, folder: int | None = None, shown: str | None = None) -> npt.NDArray[np.uint8]:
    """A regular file, not a symbolic link, mapped for reading; no descriptor stays open.

    Args:
        name: of the file, inside `folder` where one is given.
        folder: an open folder.
        shown: what errors call the file, by default its name.

    Returns:
        Its bytes, read-only, mapped for as long as the array or a view of it lives.

    Raises:
        GalleryError: the file is missing, empty, unreadable, a link or no regular file.
    """
    path = name if shown is None else shown
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, "it is a symbolic link")
        if stat.S_ISREG(status.st_mode):
            with open_file(name, os.O_RDONLY, folder) as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    return np.asarray(_Mapping(file.fileno(), status.st_size))
    except OSError as error:
        lacking, said = lack(error), error.strerror or error
        if error.errno in (errno.EACCES, errno.EPERM):
            lacking = f"{said}; check its permissions"
        raise GalleryError(
            f"{path}: this part of the gallery cannot be read "
            + (f"({said}); restore the gallery from a copy" if lacking is None else f"now: {lacking}")
        ) from error
    raise GalleryError(
        f"{path}: found {'an empty file' if stat.S_ISREG(status.st_mode) else 'no regular file'}, "
        "expected gallery rows; restore the gallery from a copy"
    )
