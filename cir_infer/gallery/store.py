"""The folder of a gallery: its files, its catalogue, its locks, and the order in which they change.

    shop.gallery/
        catalogue.sqlite        what there is (catalogue.py); with -wal and -shm while open
        rows/0000000001.safetensors ...     segments (segments.py)
        readers/42              held by whoever reads generation 42 (locks.py)
        writer.lock             held by whoever writes (locks.py)

A commit writes and syncs the new rows, then syncs the folder, then commits the catalogue. Rows are
removed only after the catalogue has durably forgotten them. So whatever the catalogue names is
always there, and what a crash leaves behind is only rows that nothing names; they are swept later.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from cir_infer.errors import GalleryError
from cir_infer.gallery import files, filters, tables
from cir_infer.gallery.catalogue import Catalogue
from cir_infer.gallery.locks import EVERYTHING, Pin, WriterLock, oldest_pin
from cir_infer.gallery.segments import Segment, SegmentEntry, open_segment
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.gallery.tensors import Tensor, write_tensors

__all__ = ["Store", "drafted"]

_log = logging.getLogger(__name__)

CATALOGUE = "catalogue.sqlite"
ROWS = "rows"
READERS = "readers"
LOCK = "writer.lock"


class Store:
    """An open gallery folder.

    Args:
        path: the folder.
        read_only: refuse every change.

    Raises:
        GalleryError: not the folder of a gallery, damaged, or of a newer format.
    """

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path = path
        self.rows = path / ROWS
        self._readers = path / READERS
        self._lock = WriterLock(path / LOCK)
        self._read_only = read_only
        self._opening = Lock()
        self._snapshot: Snapshot | None = None
        self._segments: dict[int, Segment] = {}
        self._swept = False
        if not path.is_dir():
            found = "a file" if path.exists() else "nothing"
            raise GalleryError(
                f"{path}: found {found}, expected the folder of a gallery; "
                "create one with cir-index or Gallery.create"
            )
        # Who may not announce that he reads keeps writers out instead.
        self._guard = -1 if os.access(self._readers, os.W_OK) else self._keep_writers_out()
        try:
            self.catalogue = Catalogue(path / CATALOGUE, immutable=self._is_frozen())
        except BaseException:
            self._release_guard()
            raise
        self._cache = filters.FilterCache(self.catalogue)

    @staticmethod
    def create(path: Path, encoding: tables.Encoding) -> None:
        """Make an empty gallery; it is whole and durable, or not there.

        Raises:
            GalleryError: the path exists, the disk is full or fails.
        """
        with drafted(path) as draft:
            for folder in (draft, draft / ROWS, draft / READERS):
                folder.mkdir()
            (draft / READERS / EVERYTHING).touch()
            Catalogue.create(draft / CATALOGUE, encoding)
            for folder in (draft / READERS, draft / ROWS, draft):
                files.sync_folder(folder)

    def close(self) -> None:
        """Close the catalogue and let go of what this holds."""
        self._snapshot = None
        self._segments = {}
        self.catalogue.close()
        self._release_guard()

    # ---- folders that may not be written to

    def _keep_writers_out(self) -> int:
        try:
            fd = os.open(self.path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return -1  # never written to since it was created; its folder cannot be either
        except OSError as error:
            raise GalleryError(f"{self.path}: cannot be read: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise GalleryError(
                f"{self.path}: is being written to, and its folder {READERS} may not be written to from "
                "here, which reading beside a writer needs; wait, or change the permissions"
            ) from error
        return fd

    def _release_guard(self) -> None:
        if self._guard >= 0:
            fd, self._guard = self._guard, -1
            os.close(fd)

    def _is_frozen(self) -> bool:
        """Whether SQLite cannot make the files beside the catalogue that it shares with writers."""
        if os.access(self.path, os.W_OK):
            return False
        log = self.path / f"{CATALOGUE}-wal"
        if log.exists() and log.stat().st_size and not os.access(self.path / f"{CATALOGUE}-shm", os.R_OK):
            raise GalleryError(
                f"{self.path}: was not closed properly and may not be written to from here; "
                "open it once with permission to write"
            )
        return not log.exists() or not log.stat().st_size

    # ---- reading

    def snapshot(self) -> Snapshot:
        """The newest generation; the same object until there is a newer one.

        Raises:
            GalleryError: the gallery is damaged or closed.
        """
        current = self._snapshot
        if current is not None and current.generation == self.catalogue.generation():
            return current
        with self._opening:
            current = self._snapshot
            if current is None or current.generation != self.catalogue.generation():
                current = self._snapshot = self._open_snapshot()
            return current

    def _open_snapshot(self) -> Snapshot:
        while True:
            pin = self._pin()
            try:
                state = self.catalogue.state()
                try:
                    segments = {entry.number: self.segment(entry, state.encoding) for entry in state.segments}
                except GalleryError:
                    # Just before the pin was set, a compaction may have taken a segment away.
                    if self.catalogue.generation() == state.generation:
                        raise
                    pin.release()
                    continue
                self._segments = segments
                return Snapshot(state, list(segments.values()), self.catalogue, self._cache, pin)
            except BaseException:
                pin.release()
                raise

    def _pin(self) -> Pin:
        if not os.access(self._readers, os.W_OK):
            return Pin.none()
        with files.told_as_gallery_error("announcing a reader", self._readers):
            return Pin(self._readers, self.catalogue.generation())

    def segment(self, entry: SegmentEntry, encoding: tables.Encoding) -> Segment:
        """A segment of an encoding, opened once."""
        known = self._segments.get(entry.number)
        if known is not None and known.entry == entry:
            return known
        return open_segment(self.rows, entry, encoding.dimension, encoding.dtype)

    # ---- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer inside the block.

        Raises:
            GalleryBusyError: somebody else is writing.
            GalleryError: the gallery is open read-only, or may not be written to.
        """
        if self._read_only:
            raise GalleryError(f"{self.path}: open for reading only; open it without read_only to change it")
        with self._lock.held():
            yield

    def write_segment(
        self, tensors: Sequence[Tensor], first_key: int, last_key: int, rows: int
    ) -> SegmentEntry:
        """Rows and their name on the disk; not yet in the catalogue.

        Raises:
            GalleryError: the disk is full or fails.
        """
        with self.catalogue.reading() as connection:
            number = tables.header(connection, "next_segment")
        while (self.rows / (entry := SegmentEntry(number, first_key, last_key, rows, 0, "")).name).exists():
            number += 1
        path = self.rows / entry.name
        with files.told_as_gallery_error("writing rows", path):
            try:
                size, checksum = write_tensors(path, tensors)
                files.sync_folder(self.rows)
            except BaseException:
                files.remove(path)
                raise
        return entry._replace(bytes=size, sha256=checksum)

    def commit(self, change: tables.Change) -> None:
        """Make a change of the catalogue durable and visible, then sweep what is no longer needed.

        The caller holds the writer lock.

        Raises:
            OutcomeUnknownError: the disk died under the last step; it is there or not, but whole.
            GalleryError: the commit failed; nothing of it is visible, now or later.
        """
        try:
            with self.catalogue.writing() as connection:
                change(connection)
        except BaseException:
            # Rows written for it may lie about. They are swept behind the next commit, not now: only
            # a commit that succeeds proves that this one can never come back.
            self._swept = False
            raise
        self.tidy()

    def tidy(self) -> None:
        """Remove retired rows and buried items that no snapshot can show, and rows of failed commits.

        The caller holds the writer lock and has just committed. What cannot be removed now, on a
        full disk for instance, is left for the next time: it is no part of the gallery.
        """
        try:
            self._sweep()
        except (GalleryError, OSError) as error:
            self._swept = False
            _log.warning("%s: leftovers are kept for now: %s", self.path, error)

    def _sweep(self) -> None:
        with self.catalogue.reading() as connection:
            retired = connection.execute(
                "SELECT 1 FROM segments WHERE retired IS NOT NULL LIMIT 1"
            ).fetchone()
        if retired:
            oldest = oldest_pin(self._readers)
            with self.catalogue.writing(visible=False) as connection:
                doomed = tables.forget_retired(connection, oldest)
            for entry in doomed:
                files.remove(self.rows / entry.name)
        if not self._swept:
            with self.catalogue.reading() as connection:
                known = {f"{number:010d}.safetensors" for number in tables.segment_numbers(connection)}
            for path in self.rows.iterdir():
                if path.name not in known:
                    files.remove(path)
            self._swept = True

    def forget_snapshot(self) -> None:
        """Let go of this store's own snapshot, so that it does not hold back a sweep."""
        self._snapshot = None


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Build a folder or file under another name; it gets its own at the end of the block, all at once.

    Raises:
        GalleryError: the path exists, the disk is full or fails. Nothing is left.
    """
    if path.exists() or path.is_symlink():
        raise GalleryError(f"{path}: already exists; open it, or choose another path")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with files.told_as_gallery_error("writing it", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            files.rename(draft, path)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            files.remove(draft)
        raise
