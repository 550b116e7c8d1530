"""What a gallery is made of, put together: its folder, its catalogue, its locks, and how they change.

A commit writes and syncs the new rows, then syncs the folder, then commits the catalogue. Rows are
removed only after the catalogue has durably forgotten them. So whatever the catalogue names is
always there, and what a crash leaves behind is only rows that nothing names; they are swept later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from cir_infer.errors import GalleryError
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.catalogue import Catalogue
from cir_infer.gallery.disk import files, leftovers
from cir_infer.gallery.disk.drafts import INSIDE, Made, drafted, filled, is_vacant
from cir_infer.gallery.disk.drafts import sweep as sweep_drafts
from cir_infer.gallery.disk.folder import CATALOGUE, READERS, ROWS, Folder
from cir_infer.gallery.disk.locks import EVERYTHING, Hold, Pin, WriterLock, oldest_pin
from cir_infer.gallery.disk.outcome import tell_durable
from cir_infer.gallery.filters import filters
from cir_infer.gallery.rows.segments import Segment, SegmentEntry, open_segment
from cir_infer.gallery.rows.tensors import Tensor, write_tensors
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.processes.folders import sync_folder
from cir_infer.processes.turns import Turn

__all__ = ["ITEMS_AT_ONCE", "Store"]

P = ParamSpec("P")
T = TypeVar("T")

ITEMS_AT_ONCE = 1 << 15
"""So many buried items are forgotten by one commit: each costs some look-ups for its attributes."""

_log = logging.getLogger(__name__)


class Store:
    """An open gallery.

    Args:
        path: the folder.
        read_only: refuse every change.
        wait: how many seconds to wait for another writer.

    Attributes:
        folder: the folder.
        catalogue: the catalogue.

    Raises:
        GalleryError: not the folder of a gallery, damaged, or of a newer format.
    """

    def __init__(self, path: Path, read_only: bool, wait: float) -> None:
        self.folder = Folder(path)
        self.read_only = read_only
        self.wait = wait
        self._lock = WriterLock(self.folder, wait)
        self._opening = Turn()
        self._snapshot: Snapshot | None = None
        self._known: tuple[int, bytes] | None = (
            None  # a generation, and the state of the catalogue that is it
        )
        self._segments: dict[int, Segment] = {}
        self._swept: frozenset[str] | None = None  # the row files when leftovers were last looked for
        self._told: set[str] = set()
        try:
            self.catalogue = Catalogue(self.folder)
            self._identities = self.catalogue.identities
        except BaseException as error:
            try:
                if isinstance(error, GalleryError):
                    self.folder.check()  # what was exchanged meanwhile is not damaged
            finally:
                self.folder.close()
            raise
        self._cache = filters.FilterCache(self.catalogue)

    @staticmethod
    def create(path: Path, made: Made, encoding: tables.Encoding, origin: str | None = None) -> None:
        """Make an empty gallery; it is whole and durable, or not there.

        Args:
            path: does not exist yet, or is an empty folder.
            made: empty; says what is made here, for `drafts.tell_of`.
            encoding: of its rows.
            origin: for a backup, the identity of the gallery that it is of.

        Raises:
            GalleryError: the path exists, the disk is full or fails.
        """
        with filled(path, made, CATALOGUE) if is_vacant(path) else drafted(path, made) as draft:
            for folder in (draft, draft / ROWS, draft / READERS):
                folder.mkdir()
            (draft / READERS / EVERYTHING).touch()
            Catalogue.create(draft / CATALOGUE, encoding, origin)
            for folder in (draft / READERS, draft / ROWS, draft):
                sync_folder(folder)

    @property
    def identity(self) -> str | None:
        """The UUID of the gallery; None in format 1, which has none."""
        if not self._identities:
            with self.catalogue.reading() as connection:
                return tables.identity(connection)
        return self._identities[0]

    @property
    def path(self) -> Path:
        """The folder's path, absolute."""
        return self.folder.path

    def close(self) -> None:
        """Close the catalogue and let go of what this holds."""
        self._snapshot = None
        self._segments = {}
        self.catalogue.close()
        self.folder.close()

    # ---- reading

    def snapshot(self) -> Snapshot:
        """The newest generation; the same object until there is a newer one.

        Raises:
            GalleryError: the gallery is damaged, closed or exchanged.
        """
        current = self._snapshot
        self.folder.check_name()
        state = self.catalogue.links.check_log()
        if current is not None and self._is_newest(current.generation, state):
            return current
        with self.catalogue.unexchanged():
            return self._opening.take(self._newest)

    def _is_newest(self, generation: int, state: bytes | None) -> bool:
        """Whether a generation that was the newest is so still; SQLite is asked once for each state."""
        if state is not None and self._known == (generation, state):
            return True
        newest = generation == self.catalogue.generation()
        if newest and state is not None:
            # Generations only grow: it was no other when the state was looked at, between then and now.
            self._known = generation, state
        return newest

    def _newest(self) -> Snapshot:
        current = self._snapshot
        if current is None or current.generation != self.catalogue.generation():
            current = self._snapshot = self._open_snapshot()
        return current

    def _open_snapshot(self) -> Snapshot:
        self.folder.check()
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
        if not self.catalogue.links.announces:
            return Pin.none()
        with files.told_as_gallery_error("announcing a reader", self.path / READERS):
            return Pin(self.folder.readers, self.catalogue.generation())

    def segment(self, entry: SegmentEntry, encoding: tables.Encoding) -> Segment:
        """A segment of an encoding, opened once."""
        known = self._segments.get(entry.number)
        if known is not None and known.entry == entry:
            return known
        with self.catalogue.unexchanged():
            return open_segment(self.folder, entry, encoding.row_shape, encoding.dtype)

    # ---- writing

    def writing(self) -> AbstractContextManager[Any]:
        """Be the one writer until the end of a `with`; see `WriterLock.acquire`.

        Raises:
            GalleryBusyError: somebody else is writing.
            GalleryError: the gallery is open read-only, or may not be written to.
        """
        if self.read_only:
            raise GalleryError(f"{self.path}: open for reading only; open it without read_only to change it")
        self.folder.check_name()
        self.catalogue.links.thaw()
        return self._lock.acquire()

    def change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do one call's work as the one writer.

        An exception that comes when a change of the call is on the disk already, an interrupt for
        instance, says so (`outcome.tell_durable`).

        Raises:
            GalleryError: see `writing`, and whatever the work raises.
        """
        hold: Hold | None = None
        try:
            with self.writing() as held, held, self.catalogue.unexchanged():
                hold = self._look()
                return work(*args, **kwargs)
        except BaseException as error:
            if hold is not None and hold.durable:
                tell_durable(error, "what this call had committed by then is on the disk, and stays")
            raise

    def _look(self) -> Hold:
        """Note the generation that this call begins with."""
        self.folder.check()
        self.folder.check_retired()
        hold = self._held()
        hold.durable = False
        hold.generation = self.catalogue.generation()
        return hold

    def retire(self, retired: bool) -> None:
        """See `Gallery.retire`.

        Raises:
            GalleryError: another writer, or the disk is full or fails.
        """
        with self.writing(), files.told_as_gallery_error("retiring", self.path):
            self.folder.retire(retired)

    def _held(self) -> Hold:
        hold = self._lock.hold
        if hold is None:
            raise GalleryError(
                f"{self.path}: this thread does not hold the writer lock (any more); try again"
            )
        return hold

    def write_segment(
        self, tensors: Sequence[Tensor], first_key: int, last_key: int, rows: int
    ) -> SegmentEntry:
        """Rows and their name on the disk; not yet in the catalogue.

        Raises:
            GalleryError: the disk is full or fails.
        """
        with self.catalogue.reading() as connection:
            number = tables.header(connection, "next_segment")
        folder = self.folder.rows
        with files.told_as_gallery_error("writing rows", self.path / ROWS):
            taken = set(folder.names())
        while (entry := SegmentEntry(number, first_key, last_key, rows, 0, "")).name in taken:
            number += 1
        about = leftovers.about(self.identity, number)
        with files.told_as_gallery_error("writing rows", self.path / ROWS / entry.name):
            try:
                size, checksum = write_tensors(entry.name, tensors, about, folder.fd)
                sync_folder(folder)
            except BaseException:
                files.remove(entry.name, folder.fd)
                raise
        return entry._replace(bytes=size, sha256=checksum)

    def remove_files(self, unnamed: Sequence[SegmentEntry]) -> None:
        """Remove the files of segments that nothing names yet, or any more."""
        for entry in unnamed:
            files.remove(entry.name, self.folder.rows.fd)

    def commit(self, change: tables.Change, unneeded: Sequence[SegmentEntry] = ()) -> None:
        """Make a change of the catalogue durable and visible, then sweep what is no longer needed.

        The caller holds the writer lock.

        Args:
            change: statements.
            unneeded: segments that it deletes and that nobody can have seen; their files are removed.

        Raises:
            OutcomeUnknownError: the disk died under the last step; it is there or not, but whole.
            GalleryError: the commit failed, or the gallery is not what was opened; nothing of it is
                visible, now or later.
        """
        hold = self._held()
        self.folder.check()
        self._lock.check(hold)
        self.catalogue.links.check_log()
        try:
            self.catalogue.commit(change, hold)
        except BaseException:
            # Rows written for it may lie about. They are swept behind the next commit, not now: only
            # a commit that succeeds proves that this one can never come back.
            self._swept = None
            raise
        self.remove_files(unneeded)
        self.tidy()

    def tidy(self, items: int | None = ITEMS_AT_ONCE) -> None:
        """Remove retired rows and buried items that no snapshot can show, and rows of failed commits.

        The caller holds the writer lock and has just committed. What cannot be removed now, on a
        full disk for instance, is left for the next time: it is no part of the gallery.

        Args:
            items: so many at most now, that no commit takes long; None for all.
        """
        try:
            self._sweep(self._held(), items)
        except (GalleryError, OSError) as error:
            self._swept = None
            _log.warning("%s: leftovers are kept for now: %s", self.path, error)

    def _sweep(self, hold: Hold, items: int | None) -> None:
        with self.catalogue.reading() as connection:
            waiting = tables.is_waiting(connection)
        if waiting:
            oldest = oldest_pin(self.folder.readers, hold.generation)
            doomed: list[SegmentEntry] = []
            self.catalogue.commit(
                lambda connection: doomed.extend(tables.forget_retired(connection, oldest, items)),
                hold,
                visible=False,
            )
            self.remove_files(doomed)
        # A long-lived writer finds what others left meanwhile, too.
        if self._swept != frozenset(self.folder.rows.names()):
            with self.catalogue.reading() as connection:
                known = set(tables.segment_numbers(connection))
                next_segment = tables.header(connection, "next_segment")
                dimensions = set() if self._identities else tables.dimensions(connection)
                identities = tables.identities(connection)
            leftovers.sweep(self.folder.rows, known, next_segment, identities, dimensions)
            sweep_drafts(self.path / INSIDE)
            self._swept = frozenset(self.folder.rows.names())

    def tell_once(self, message: str, *values: object) -> None:
        """Log a warning about this gallery, once for as long as it is open."""
        if message not in self._told:
            self._told.add(message)
            _log.warning("%s: " + message, self.path, *values)

    def forget_snapshot(self) -> None:
        """Let go of this store's own snapshot, so that it does not hold back a sweep."""
        self._snapshot = None
