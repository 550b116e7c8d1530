"""Changing the bundle: new rows grow beside the old ones and take their place in one commit.

Keys, ids and metadata stay; only rows are made anew, in segments of a second encoding that nobody
reads yet. What has been added survives a crash, so the work is continued where it stopped, and many
small segments are merged on the way. Items may come and go meanwhile; `missing` says what is still to
be done.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.changes import upkeep
from cir_infer.gallery.changes.compaction import merge
from cir_infer.gallery.rows.segments import Segment, SegmentEntry
from cir_infer.gallery.rows.vectors import checked_vectors, row_tensors, to_rows
from cir_infer.gallery.store import Store
from cir_infer.processes.staying import Staying

__all__ = ["Reencoding"]

Keys = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)


class Reencoding(Staying):
    """The rows of a gallery as another bundle makes them, in the making.

    Args:
        store: the gallery.
        encoding: what the new rows are; its number is chosen here. An unfinished re-encoding into
            the same is continued, into anything else discarded.

    Raises:
        GalleryError: another writer, or the disk is full or fails.
    """

    stays = ("a re-encoding", "ask the Gallery for it again: what is finished is kept")
    refusal = GalleryError

    def __init__(self, store: Store, encoding: tables.Encoding) -> None:
        self._store = store
        self._opened: dict[int, Segment] = {}
        self._encoding = store.change(self._begun, encoding)

    def _begun(self, encoding: tables.Encoding) -> tables.Encoding:
        store = self._store
        with store.catalogue.reading() as connection:
            found = tables.pending(connection)
            current = tables.header(connection, "encoding")
            discarded = [entry for old in found for entry in tables.segments_of(connection, old.number)]
        match = [old for old in found if old[1:] == encoding[1:]]
        if match:
            return match[0]
        encoding = encoding._replace(number=current + 1)
        store.commit(lambda connection: tables.begin_encoding(connection, encoding), discarded)
        return encoding

    @property
    def dtype(self) -> str:
        """The type of the new rows."""
        return self._encoding.dtype

    def missing(self) -> Keys:
        """The keys of the items that have no new row yet, int64, ascending."""
        state, new = self._look()
        live = [np.empty(0, np.int64)]
        for segment in self._segments(state.segments, state.encoding):
            live.append(segment.all_keys()[~segment.buried(state.buried)])
        done = [segment.all_keys() for segment in self._segments(new, self._encoding)]
        return np.setdiff1d(
            np.concatenate(live), np.concatenate([np.empty(0, np.int64), *done]), assume_unique=True
        )

    def add(self, keys: Sequence[int], vectors: npt.NDArray[np.float32]) -> None:
        """Add new rows of items, in one commit.

        Args:
            keys: n distinct ones; those that are not `missing` (any more) are passed over.
            vectors: float32 (n, D) of the new bundle, (n, M, D) where its items have M vectors.

        Raises:
            GalleryError: see `Gallery.add_vectors`.
        """
        self._store.change(self._add, np.asarray(keys, np.int64), np.asarray(vectors))

    def _add(self, wanted: Keys, vectors: npt.NDArray[np.float32]) -> None:
        order = np.argsort(wanted)
        order = order[self._are_missing(wanted[order])]
        ascending = wanted[order]
        if not len(ascending):
            return
        names = [f"(key {key})" for key in ascending]
        rows = checked_vectors(vectors[order], names, self._encoding.row_shape, self._encoding.dtype)
        tensors = row_tensors(self._encoding.dtype, *to_rows(rows, self._encoding.dtype), ascending)
        entry = self._store.write_segment(tensors, int(ascending[0]), int(ascending[-1]), len(ascending))
        self._store.commit(lambda connection: tables.insert_segment(connection, self._encoding.number, entry))
        self._merge_newest()

    def _are_missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of some ascending keys are live and have no new row; costs what these keys cost."""
        state, new = self._look()
        with self._store.catalogue.reading() as connection:
            live = ~np.array(tables.buried(connection, keys.tolist()), np.bool_)
        return (
            live
            & _held(self._segments(state.segments, state.encoding, keys), keys)
            & ~_held(self._segments(new, self._encoding, keys), keys)
        )

    def _look(self) -> tuple[tables.State, list[SegmentEntry]]:
        """The gallery as it is, and the segments of the new encoding."""
        with self._store.catalogue.reading() as connection:
            connection.execute("BEGIN")
            state = tables.read_state(connection)
            return state, tables.segments_of(connection, self._encoding.number)

    def _segments(
        self, entries: Sequence[SegmentEntry], encoding: tables.Encoding, keys: Keys | None = None
    ) -> list[Segment]:
        """Segments, opened once for as long as they are asked for; of those that may hold some keys."""
        if keys is not None:
            entries = [e for e in entries if len(keys) and e.first_key <= keys[-1] and keys[0] <= e.last_key]
        else:
            known = {entry.number for entry in entries}
            if encoding is self._encoding:
                self._opened = {n: segment for n, segment in self._opened.items() if n in known}
        found = []
        for entry in entries:
            segment = self._opened.get(entry.number)
            if segment is None or segment.entry != entry:
                segment = self._store.segment(entry, encoding)
                if encoding is self._encoding:
                    self._opened[entry.number] = segment
            found.append(segment)
        return found

    def _merge_newest(self) -> None:
        """Merge the newest segments if there are many small ones; see `upkeep.keep_up`.

        What fails here is logged and tried again by the next commit.
        """
        store = self._store
        try:
            state, entries = self._look()
            newest = upkeep.newest_small(sorted(entries, key=lambda entry: entry.number))
            if len(newest) < 2:
                return
            group = self._segments(newest, self._encoding, np.array([0, state.next_key]))
            merged = merge(store, self._encoding, group, [segment.buried(state.buried) for segment in group])

            def change(connection: tables.Connection) -> None:
                tables.delete_segments(connection, newest)
                for entry in merged:
                    tables.insert_segment(connection, self._encoding.number, entry)

            # Nobody reads them yet, so their files can go at once.
            store.commit(change, newest)
        except GalleryError as error:
            _log.warning("%s: small commits are not merged for now: %s", store.path, error)

    def finish(self, drop: Collection[int] = ()) -> bool:
        """Let the new rows take the place of the old ones.

        Args:
            drop: keys of items that cannot have a new row; they are removed.

        Returns:
            False, and nothing is changed, if other items are still missing.

        Raises:
            GalleryError: another writer, or the disk is full or fails.
        """
        return self._store.change(self._finish, drop)

    def _finish(self, drop: Collection[int]) -> bool:
        store, encoding = self._store, self._encoding
        missing = self.missing()
        if np.setdiff1d(missing, np.array(list(drop), np.int64)).size:
            return False
        state, entries = self._look()
        new = self._segments(entries, encoding)
        dead = [segment.buried(state.buried) for segment in new]
        merged: list[SegmentEntry] = []
        if any(flags.any() for flags in dead) or _overlap(new):
            merged = merge(store, encoding, new, dead)
        kept = [s.all_keys()[~flags] for s, flags in zip(new, dead, strict=True)]
        old = [segment.all_keys() for segment in self._segments(state.segments, state.encoding)]
        empty = np.empty(0, np.int64)
        gone = np.setdiff1d(np.concatenate([empty, *old]), np.concatenate([empty, *kept]))
        replaced = entries if merged or not any(len(keys) for keys in kept) else []

        def change(connection: tables.Connection) -> None:
            tables.set_buried(connection, [int(key) for key in missing], True)
            tables.delete_segments(connection, replaced)
            for entry in merged:
                tables.insert_segment(connection, encoding.number, entry)
            tables.retire(connection, state.segments, gone)
            tables.adopt(connection, encoding.number)

        store.commit(change, replaced)
        store.forget_snapshot()
        store.tidy()
        return True


def _held(segments: Sequence[Segment], keys: Keys) -> npt.NDArray[np.bool_]:
    """Which keys have a row in one of the segments."""
    found = np.zeros(len(keys), np.bool_)
    for segment in segments:
        found |= segment.places(keys) >= 0
    return found


def _overlap(segments: Sequence[Segment]) -> bool:
    ends = 0
    for segment in segments:  # they come in the order of their first keys
        if segment.entry.first_key <= ends:
            return True
        ends = segment.entry.last_key
    return False
