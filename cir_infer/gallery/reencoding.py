"""Changing the bundle: new rows grow beside the old ones and take their place in one commit.

Keys, ids and metadata stay; only rows are made anew, in segments of a second encoding that nobody
reads yet. What has been added survives a crash, so the work is continued where it stopped. Items
may come and go meanwhile; `missing` says what is still to be done.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from cir_infer.gallery import tables
from cir_infer.gallery.compaction import merge
from cir_infer.gallery.rows import checked_vectors, row_tensors, to_rows
from cir_infer.gallery.segments import Segment
from cir_infer.gallery.store import Store

__all__ = ["Reencoding"]

Keys = npt.NDArray[np.int64]


class Reencoding:
    """The rows of a gallery as another bundle makes them, in the making.

    Args:
        store: the gallery.
        encoding: what the new rows are; its number is chosen here. An unfinished re-encoding into
            the same is continued, into anything else discarded.

    Raises:
        GalleryError: another writer, or the disk is full or fails.
    """

    def __init__(self, store: Store, encoding: tables.Encoding) -> None:
        self._store = store
        with store.writing():
            with store.catalogue.reading() as connection:
                found = tables.pending(connection)
                current = tables.header(connection, "encoding")
            match = [old for old in found if old[1:] == encoding[1:]]
            self._encoding = match[0] if match else encoding._replace(number=current + 1)
            if not match:
                store.commit(lambda connection: tables.begin_encoding(connection, self._encoding))

    @property
    def dtype(self) -> str:
        """The type of the new rows."""
        return self._encoding.dtype

    def missing(self) -> Keys:
        """The keys of the items that have no new row yet, int64, ascending."""
        with self._store.catalogue.reading() as connection:
            connection.execute("BEGIN")
            state = tables.read_state(connection)
            entries = tables.segments_of(connection, self._encoding.number)
        live = self._live(state)
        done = [self._store.segment(entry, self._encoding).all_keys() for entry in entries]
        return np.setdiff1d(live, np.concatenate([np.empty(0, np.int64), *done]), assume_unique=True)

    def add(self, keys: Sequence[int], vectors: npt.NDArray[np.float32]) -> None:
        """Add new rows of items, in one commit.

        Args:
            keys: n distinct ones; those that are not `missing` (any more) are passed over.
            vectors: float32 (n, D) of the new bundle.

        Raises:
            GalleryError: see `Gallery.add_vectors`.
        """
        wanted = np.asarray(keys, np.int64)
        with self._store.writing():
            order = np.argsort(wanted)
            order = order[np.isin(wanted[order], self.missing())]
            ascending = wanted[order]
            if not len(ascending):
                return
            names = [f"(key {key})" for key in ascending]
            rows = checked_vectors(
                np.asarray(vectors)[order], names, self._encoding.dimension, self._encoding.dtype
            )
            tensors = row_tensors(self._encoding.dtype, *to_rows(rows, self._encoding.dtype), ascending)
            entry = self._store.write_segment(tensors, int(ascending[0]), int(ascending[-1]), len(ascending))
            self._store.commit(
                lambda connection: tables.insert_segment(connection, self._encoding.number, entry)
            )

    def finish(self, drop: Collection[int] = ()) -> bool:
        """Let the new rows take the place of the old ones.

        Args:
            drop: keys of items that cannot have a new row; they are removed.

        Returns:
            False, and nothing is changed, if other items are still missing.

        Raises:
            GalleryError: another writer, or the disk is full or fails.
        """
        store, encoding = self._store, self._encoding
        with store.writing():
            missing = self.missing()
            if np.setdiff1d(missing, np.array(list(drop), np.int64)).size:
                return False
            state = store.catalogue.state()
            with store.catalogue.reading() as connection:
                entries = tables.segments_of(connection, encoding.number)
            new = [store.segment(entry, encoding) for entry in entries]
            dead = [segment.buried(state.buried) for segment in new]
            merged = None
            if any(flags.any() for flags in dead) or _overlap(new):
                merged = merge(store, encoding, new, dead)
            kept = [s.all_keys()[~flags] for s, flags in zip(new, dead, strict=True)]
            old = [store.segment(entry, state.encoding).all_keys() for entry in state.segments]
            empty = np.empty(0, np.int64)
            gone = np.setdiff1d(np.concatenate([empty, *old]), np.concatenate([empty, *kept]))

            def change(connection: tables.Connection) -> None:
                tables.set_buried(connection, [int(key) for key in missing], True)
                if merged is not None or not any(len(keys) for keys in kept):
                    tables.delete_segments(connection, entries)
                if merged is not None:
                    tables.insert_segment(connection, encoding.number, merged)
                tables.retire(connection, state.segments, gone)
                tables.adopt(connection, encoding.number)

            store.commit(change)
            store.forget_snapshot()
            store.tidy()
        return True

    def _live(self, state: tables.State) -> Keys:
        live = [np.empty(0, np.int64)]
        for entry in state.segments:
            segment = self._store.segment(entry, state.encoding)
            live.append(segment.all_keys()[~segment.buried(state.buried)])
        return np.concatenate(live)


def _overlap(segments: Sequence[Segment]) -> bool:
    ends = 0
    for segment in segments:  # they come in the order of their first keys
        if segment.entry.first_key <= ends:
            return True
        ends = segment.entry.last_key
    return False
