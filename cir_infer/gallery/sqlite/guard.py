"""Locks on the bytes that SQLite locks: ours are not lost when others here open and close its files."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import sys
import weakref
from contextlib import suppress
from typing import Any

from cir_infer.gallery.disk.files import is_regular, open_file
from cir_infer.gallery.disk.folder import CATALOGUE, Folder, Identity
from cir_infer.gallery.sqlite.log import INDEX, LOG, parts

__all__ = ["Guard"]

# Bytes that SQLite locks, https://sqlite.org/fileformat2.html and os_unix.c.
_SHARED_BYTE = 0x40000002  # of the catalogue, by every connection
_INDEX_BYTE = 128  # of the index of the log, by every process that has it open

# The index of the log begins with what is in the log, https://sqlite.org/walformat.html: 14 bytes, the size
# of a page (1 is 65,536), the number of frames, checksums and the log's salt. By these bytes SQLite itself
# knows whether somebody has committed.
_INDEX_HEADER = struct.Struct("14xHI28x")
_LOG_HEADER, _FRAME_HEADER = 32, 24


class Guard:
    """What this process holds for as long as it has connections to one catalogue.

    Args:
        folder: of the gallery.

    Attributes:
        links: the connections.
        parts: the files of the log that they use, see `log.parts`.

    Raises:
        OSError: a file cannot be opened.
    """

    def __init__(self, folder: Folder) -> None:
        self.links: weakref.WeakSet[Any] = weakref.WeakSet()
        self.parts: dict[str, Identity | None] = {}
        self._main = _lockable(CATALOGUE, folder)
        self._index: io.FileIO | None = None

    def lock(self, folder: Folder) -> None:
        """Lock what SQLite locks, once the files beside the catalogue are there."""
        if self._main is None:
            return
        _hold_byte(self._main, fcntl.F_RDLCK, _SHARED_BYTE)
        if self._index is None and is_regular(INDEX, folder.fd):
            self._index = _lockable(INDEX, folder)
        if self._index is not None:
            _hold_byte(self._index, fcntl.F_RDLCK, _INDEX_BYTE)

    def look(self, folder: Folder) -> tuple[str | None, bytes | None]:
        """What of the log is not the file any more that the connections use, and what every commit changes.

        None where all is, or nobody can tell.
        """
        if not self.parts:
            return None, None
        now = parts(folder)
        lost = next((name for name, opened in self.parts.items() if now[name] != opened), None)
        if lost is not None or self._index is None or self._index.closed:
            return lost, None
        with suppress(OSError, ValueError, struct.error):  # ValueError: another thread closes it
            # Twice the same around the look: SQLite cuts a log that it begins anew.
            before = os.pread(self._index.fileno(), _INDEX_HEADER.size, 0)
            size = os.stat(LOG, dir_fd=folder.fd, follow_symlinks=False).st_size
            page, frames = _INDEX_HEADER.unpack(before)
            least = frames and _LOG_HEADER + frames * (_FRAME_HEADER + (page if page > 1 else 1 << 16))
            if size < least and before == os.pread(self._index.fileno(), _INDEX_HEADER.size, 0):
                return LOG, None
            return None, before
        return None, None

    def unlock(self) -> None:
        """Let the last connection write the log back and remove it."""
        for file, byte in ((self._main, _SHARED_BYTE), (self._index, _INDEX_BYTE)):
            if file is not None and not file.closed:
                _hold_byte(file, fcntl.F_UNLCK, byte)

    def close(self) -> None:
        """Give the descriptors back. Only while no connection is open: it drops the locks of all."""
        for file in (self._main, self._index):
            if file is not None:
                file.close()


def _lockable(name: str, folder: Folder) -> io.FileIO | None:
    """A file to lock, None on systems without locks that belong to what was opened."""
    if not hasattr(fcntl, "F_OFD_SETLK") or sys.maxsize < 1 << 32:
        return None
    return open_file(name, os.O_RDONLY, folder.fd)


def _hold_byte(file: io.FileIO, kind: int, byte: int) -> None:
    if sys.platform.startswith("linux"):
        with suppress(OSError):  # where the file system has no locks, SQLite has none either
            lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
