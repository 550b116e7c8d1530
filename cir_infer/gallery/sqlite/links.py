"""A connection of SQLite to a catalogue: opened by name, and proved to lead to what was meant."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

from cir_infer.errors import GalleryError
from cir_infer.gallery.disk.folder import CATALOGUE, Folder
from cir_infer.gallery.sqlite.guard import Guard

__all__ = ["Link", "connected", "lacks_space", "prove"]


class Link(sqlite3.Connection):
    """A connection of SQLite. The type of sqlite3 itself cannot be referred to weakly."""

    guard: Guard | None = None
    frozen: bool = False
    thread: int = 0


def connected(folder: Folder, mode: str) -> Link:
    """A new connection to the catalogue that a folder's name leads to.

    Raises:
        GalleryError: the folder is not what was opened.
        sqlite3.Error: it cannot be opened.
    """
    try:
        link = sqlite3.connect(
            f"file:{folder.located()}/{CATALOGUE}?mode={mode}",
            uri=True,
            timeout=30,
            isolation_level=None,
            check_same_thread=False,
            factory=Link,
        )
    except sqlite3.OperationalError:
        folder.check()
        raise
    # The file may come from anywhere: nothing in it may call functions, and its pages are checked.
    link.execute("PRAGMA trusted_schema = OFF")
    link.execute("PRAGMA cell_size_check = ON")
    link.execute("PRAGMA mmap_size = 0")
    return link


def prove(folder: Folder, link: Link) -> None:
    """SQLite opens by name: was the name that it used that of this gallery, before and after?

    Raises:
        GalleryError: it was not.
    """
    link.text_factory = os.fsdecode  # a name need not be UTF-8
    name: str = link.execute("PRAGMA database_list").fetchone()[2]
    link.text_factory = str
    with suppress(OSError):
        found = os.lstat(name), os.stat(name.rpartition("/")[0])  # noqa: PTH116
        if [(status.st_dev, status.st_ino) for status in found] == [folder.catalogue, folder.identity]:
            return
    folder.check()
    raise GalleryError(f"{folder.path}: was moved while it was being opened; open it again")


def lacks_space(error: sqlite3.OperationalError) -> bool:
    """Whether SQLite failed for want of space, or may have."""
    return any(words in str(error) for words in ("full", "I/O", "unable to open"))
