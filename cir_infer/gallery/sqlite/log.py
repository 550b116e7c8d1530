"""The log of the catalogue: the files by which SQLite commits, and by which processes see those commits."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from cir_infer.errors import GalleryError
from cir_infer.gallery.disk.files import is_regular
from cir_infer.gallery.disk.folder import CATALOGUE, Folder, Identity

__all__ = ["INDEX", "LOG", "check_parts", "is_empty", "keep_log", "parts"]

LOG = f"{CATALOGUE}-wal"
INDEX = f"{CATALOGUE}-shm"


def parts(folder: Folder) -> dict[str, Identity | None]:
    """Device and inode of each of its files as they are now.

    Processes that do not have the same files open overwrite what the other has committed.
    """
    found: dict[str, Identity | None] = dict.fromkeys((LOG, INDEX))
    for name in found:
        with suppress(OSError):
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            found[name] = (status.st_dev, status.st_ino)
    return found


def check_parts(folder: Folder) -> None:
    """Refuse files beside the catalogue that SQLite must not open, or obey.

    Raises:
        GalleryError: there are such files.
    """
    folder.check_journal()
    for name in (LOG, INDEX):
        if not is_regular(name, folder.fd, absent=True):
            raise GalleryError(
                f"{folder.path}: its {name} is a link or no regular file; restore the gallery from a copy"
            )


def is_empty(folder: Folder) -> bool:
    """Whether there is nothing in the log that the catalogue does not have."""
    try:
        return os.stat(LOG, dir_fd=folder.fd, follow_symlinks=False).st_size == 0
    except OSError:
        return True


def keep_log(link: sqlite3.Connection, path: Path) -> None:
    """Give a catalogue its log again: tools that copy databases leave one that keeps none.

    Raises:
        GalleryError: it cannot be given one.
        sqlite3.Error: the catalogue cannot be read.
    """
    if link.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    if link.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise GalleryError(
            f"{path}: its {CATALOGUE} keeps no log and cannot be given one; restore the gallery from a copy"
        )
