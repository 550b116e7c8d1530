"""Who may write, and which generations are still being read: advisory locks that die with a process."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock

from cir_infer.errors import GalleryError

__all__ = ["EVERYTHING", "GalleryBusyError", "Pin", "WriterLock", "oldest_pin"]

EVERYTHING = "0"
"""The pin file that is there from the start and protects every generation."""


class GalleryBusyError(GalleryError):
    """Somebody else is writing to the gallery at the moment."""


class WriterLock:
    """One writer at a time: re-entrant for a thread, awaited by other threads, refused to others.

    The lock is an `flock` on `writer.lock`, whose text names the holder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = RLock()
        self._depth = 0
        self._fd = -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock inside the block.

        Raises:
            GalleryBusyError: another process (or another Gallery object) is writing.
            GalleryError: the lock cannot be taken at all.
        """
        with self._threads:
            if self._depth == 0:
                self._fd = self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    os.close(self._fd)

    def _acquire(self) -> int:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise GalleryError(
                f"{self._path.parent}: cannot be written to ({error.strerror}); "
                "check the permissions or open it with read_only=True"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = (
                os.pread(fd, 64, 0).decode("ascii", "replace").strip() or "a reader without write permission"
            )
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise GalleryError(f"{self._path}: cannot be locked: {error.strerror}") from error
            raise GalleryBusyError(
                f"{self._path.parent}: {holder} is writing to this gallery; one writer at a time, "
                "so wait for it to end and try again"
            ) from None
        # Naming the holder is a courtesy: on a full disk the lock holds without it.
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
        return fd


class Pin:
    """Keeps the files and items of one generation from being swept while a snapshot reads them.

    A shared `flock` on a file named after the generation; it vanishes with the process.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        self._fd = -1
        path = folder / str(generation)
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # A full disk must not keep anyone from reading: this file is always there.
                path = folder / EVERYTHING
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            # A sweeper may have removed the file between the two calls.
            if os.fstat(fd).st_nlink:
                self._fd = fd
                return
            os.close(fd)

    @classmethod
    def none(cls) -> Pin:
        """A pin that holds nothing, where writers are kept out by other means."""
        pin = cls.__new__(cls)
        pin._fd = -1
        return pin

    def release(self) -> None:
        """Let go; further calls do nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def oldest_pin(folder: Path) -> int | None:
    """The smallest generation that anyone still reads, None where nobody does; sweeps dead pins."""
    oldest = None
    for path in folder.iterdir():
        if not path.name.isdigit():
            continue
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.name != EVERYTHING:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            generation = int(path.name)
            oldest = generation if oldest is None else min(oldest, generation)
        finally:
            os.close(fd)
    return oldest
