"""Compaction: buried rows leave the disk, small segments become large ones, readers notice nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.rows.segments import CHUNK, Segment, SegmentEntry
from cir_infer.gallery.rows.tensors import Tensor
from cir_infer.gallery.rows.vectors import rows_at_once
from cir_infer.gallery.store import Store

__all__ = ["Compaction", "compact", "merge", "merge_newest", "newest_small", "write_again"]

SMALL = 1 << 16
"""Segments of fewer rows are worth merging with their neighbours."""
LARGE = 1 << 20
"""Segments are not merged beyond this many rows."""
MANY = 64
"""So many small segments are merged on the way."""
_BLOCK = 1 << 14

_log = logging.getLogger(__name__)


@dataclass
class Compaction:
    """What a compaction did.

    Attributes:
        segments_before: how many segments there were.
        segments_after: how many there are.
        rows_dropped: rows of removed and replaced items that are gone.
    """

    segments_before: int = 0
    segments_after: int = 0
    rows_dropped: int = 0


def compact(store: Store) -> Compaction:
    """Rewrite segments that hold buried rows or are small, a group of neighbours at a time.

    The order of rows stays. Each group is a commit of its own. Files and items that a snapshot
    still shows are removed by the first commit (or compaction) after it is let go.

    Raises:
        GalleryError: another writer, a full disk. Groups that were done before stay done.
    """
    return store.change(_compact, store)


def _compact(store: Store) -> Compaction:
    report = Compaction()
    state = store.catalogue.state()
    segments = [store.segment(entry, state.encoding) for entry in state.segments]
    report.segments_before = report.segments_after = len(segments)
    for group in _groups(segments, [int(s.buried(state.buried).sum()) for s in segments]):
        kept, dropped = _replace(store, state, group)
        report.segments_after += (kept > 0) - len(group)
        report.rows_dropped += dropped
    store.forget_snapshot()
    store.tidy()
    return report


def merge_newest(store: Store) -> None:
    """Merge the newest segments if there are many small ones, so that many small commits stay cheap to read.

    Segments of which nothing is left go too, whatever their size: a catalogue whose every item is replaced
    each night has no more rows by the morning. What fails here is logged and tried again by the next commit:
    the gallery is whole either way. The caller holds the writer lock.
    """
    try:
        state = store.catalogue.state()
        dead = _dead(store, state)
        if dead:
            _replace(store, state, dead)
            state = store.catalogue.state()
        newest = newest_small(state.segments)
        if len(newest) > 1:
            _replace(store, state, [store.segment(entry, state.encoding) for entry in newest])
    except GalleryError as error:
        _log.warning("%s: small commits are not merged for now: %s", store.path, error)


def _dead(store: Store, state: tables.State) -> list[Segment]:
    """The segments all of whose rows are buried; few are looked into to find them."""
    likely = [entry for entry in state.segments if _buried_within(entry, state.buried) >= entry.rows]
    segments = [store.segment(entry, state.encoding) for entry in likely]
    return [segment for segment in segments if segment.buried(state.buried).all()]


def _buried_within(entry: SegmentEntry, chunks: Mapping[int, bytes]) -> int:
    """How many keys are buried from a segment's first to its last; not all of them need be its own."""
    count = 0
    for chunk, bits in chunks.items():
        low = max(0, entry.first_key - chunk * CHUNK)
        high = min(CHUNK, entry.last_key + 1 - chunk * CHUNK)
        if low < high:
            known = int.from_bytes(bits, "little") >> low
            count += (known & ((1 << (high - low)) - 1)).bit_count()
    return count


def newest_small(entries: Sequence[SegmentEntry]) -> list[SegmentEntry]:
    """The newest segments that are worth merging, none while there are few small ones.

    Those are taken that are at most twice as large as all behind them together, so that a row is
    rewritten only a few times however small the commits are.
    """
    if sum(entry.rows < SMALL for entry in entries) < MANY:
        return []
    newest: list[SegmentEntry] = []
    rows = 0
    for entry in reversed(entries):
        if entry.rows >= SMALL or (newest and entry.rows > 2 * rows):
            break
        newest.insert(0, entry)
        rows += entry.rows
    return newest


def _replace(store: Store, state: tables.State, group: Sequence[Segment]) -> tuple[int, int]:
    """Put one segment in the place of some neighbours; how many rows it keeps and drops."""
    dead = [segment.buried(state.buried) for segment in group]
    entry = merge(store, state.encoding, group, dead)
    dropped = np.concatenate([s.all_keys()[gone] for s, gone in zip(group, dead, strict=True)])

    def change(connection: tables.Connection) -> None:
        tables.retire(connection, [segment.entry for segment in group], dropped)
        if entry is not None:
            tables.insert_segment(connection, state.encoding.number, entry)

    store.commit(change)
    return 0 if entry is None else entry.rows, len(dropped)


def _groups(segments: Sequence[Segment], dead: Sequence[int]) -> Iterator[list[Segment]]:
    """Runs of neighbours that gain from being rewritten as one segment."""
    group: list[Segment] = []
    rows = buried = 0
    for segment, gone in zip(segments, dead, strict=True):
        left = segment.entry.rows - gone
        if (group and rows + left > LARGE) or not (gone or segment.entry.rows < SMALL):
            if len(group) > 1 or buried:
                yield group
            group, rows, buried = [], 0, 0
        if gone or segment.entry.rows < SMALL:
            group.append(segment)
            rows, buried = rows + left, buried + gone
    if len(group) > 1 or buried:
        yield group


def merge(
    store: Store,
    encoding: tables.Encoding,
    segments: Sequence[Segment],
    dead: Sequence[npt.NDArray[np.bool_]],
) -> SegmentEntry | None:
    """Write the rows of some segments that are not dead as one, in the order of their keys.

    Args:
        store: whose writer lock the caller holds.
        encoding: of the segments.
        segments: of any key ranges; no key twice.
        dead: bool (n,) a segment.

    Returns:
        The new segment, not yet in the catalogue; None where no row is left.

    Raises:
        GalleryError: the disk is full or fails.
    """
    alive = [np.flatnonzero(~gone) for gone in dead]
    keys = np.concatenate([s.all_keys()[rows] for s, rows in zip(segments, alive, strict=True)])
    if not len(keys):
        return None
    which = np.repeat(np.arange(len(segments)), [len(rows) for rows in alive])
    offsets = np.concatenate(alive)
    order = np.argsort(keys, kind="stable")
    return write_again(store, encoding, segments, which[order], offsets[order], keys[order])


def write_again(
    store: Store,
    encoding: tables.Encoding,
    segments: Sequence[Segment],
    which: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
) -> SegmentEntry:
    """Write stored rows as a segment, bit for bit, a block at a time.

    Args:
        store: whose writer lock the caller holds.
        encoding: of the segments.
        segments: that the rows lie in.
        which: int64 (n,), the segment of each row, n > 0.
        offsets: int64 (n,), its place there.
        keys: int64 (n,) ascending, those that they will have.

    Returns:
        The new segment, not yet in the catalogue.

    Raises:
        GalleryError: the disk is full or fails.
    """

    def pieces(name: str) -> Iterator[npt.NDArray[np.generic]]:
        arrays = [getattr(segment, name) for segment in segments]
        step = rows_at_once(arrays[0].shape[1:], _BLOCK)
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            out = np.empty((len(keys[part]), *arrays[0].shape[1:]), arrays[0].dtype)
            for number in np.unique(which[part]):
                here = which[part] == number
                out[here] = arrays[number][offsets[part][here]]
            yield out

    names = {"rows": encoding.dtype}
    if encoding.dtype == "int8":
        names["scales"] = "float32"
    tensors = []
    for name, dtype in names.items():
        shape = (len(keys), *getattr(segments[0], name).shape[1:])
        tensors.append(Tensor(name, dtype, shape, pieces(name)))
    if keys[-1] - keys[0] + 1 != len(keys):
        tensors.append(Tensor("keys", "int64", keys.shape, [keys]))
    return store.write_segment(tensors, int(keys[0]), int(keys[-1]), len(keys))
