"""Folders that are open, each closed at the latest when what holds it dies.

An interrupt may come between any two instructions of Python. So a descriptor is taken and given to what
owns it by one call of C, and given back by one.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from functools import partial
from itertools import repeat
from pathlib import Path

__all__ = ["OpenFolder", "sync_folder"]


class OpenFolder:
    """An open folder: what is named in it stays what was opened, whatever happens to its own name.

    Args:
        name: of the folder.
        parent: another open folder that holds it; then a link is not followed.

    Raises:
        OSError: it is missing, no folder, or a link where none is followed.
    """

    def __init__(self, name: str | Path, parent: int | None = None) -> None:
        self._held: list[int] = []
        weakref.finalize(self, _close_all, self._held).atexit = False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if parent is None else os.O_NOFOLLOW)
        self._held.extend(map(partial(os.open, dir_fd=parent), (name,), (flags,)))
        status = os.fstat(self.fd)
        self.identity = (status.st_dev, status.st_ino)

    @property
    def fd(self) -> int:
        """Its descriptor; -1, which is none, once it is closed."""
        return self._held[0] if self._held else -1

    def names(self) -> list[str]:
        """The names of what lies in it."""
        return os.listdir(self.fd)  # noqa: PTH208

    def close(self) -> None:
        """Close it; further calls do nothing."""
        _close_all(self._held)


def _close_all(held: list[int]) -> None:
    with suppress(IndexError):
        any(map(os.close, map(list.pop, repeat(held, len(held)))))


def sync_folder(path: Path | OpenFolder) -> None:
    """Make the names in a folder durable."""
    folder = path if isinstance(path, OpenFolder) else OpenFolder(path)
    try:
        os.fsync(folder.fd)
    finally:
        if folder is not path:
            folder.close()
