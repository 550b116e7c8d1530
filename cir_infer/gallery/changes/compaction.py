"""Compaction: buried rows leave the disk, small segments become large ones, readers notice nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.rows.segments import Segment, SegmentEntry
from cir_infer.gallery.rows.tensors import Tensor
from cir_infer.gallery.rows.vectors import rows_at_once
from cir_infer.gallery.store import Store

__all__ = ["LARGEST", "SMALL", "Compaction", "compact", "merge", "replace", "write_again", "write_parts"]

SMALL = 1 << 16
"""Segments of fewer rows are worth merging with their neighbours."""
LARGEST = 1 << 28
"""No segment is written with more bytes of rows: what is written again in one piece is a second's work."""
_BLOCK = 1 << 14


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
    dead = [int(segment.buried(state.buried).sum()) for segment in segments]
    for group in _groups(segments, dead, state.encoding.row_bytes):
        made, dropped = replace(store, state, group)
        report.segments_after += made - len(group)
        report.rows_dropped += dropped
    store.forget_snapshot()
    store.tidy(None)
    return report


def replace(store: Store, state: tables.State, group: Sequence[Segment]) -> tuple[int, int]:
    """Put few segments in the place of some neighbours; how many they are, and how many rows are dropped."""
    dead = [segment.buried(state.buried) for segment in group]
    entries = merge(store, state.encoding, group, dead)
    dropped = np.concatenate([s.all_keys()[gone] for s, gone in zip(group, dead, strict=True)])

    def change(connection: tables.Connection) -> None:
        tables.retire(connection, [segment.entry for segment in group], dropped)
        for entry in entries:
            tables.insert_segment(connection, state.encoding.number, entry)

    store.commit(change)
    return len(entries), len(dropped)


def _groups(segments: Sequence[Segment], dead: Sequence[int], row_bytes: int) -> Iterator[list[Segment]]:
    """Runs of neighbours that gain from being rewritten as one segment."""
    group: list[Segment] = []
    size = buried = 0
    for segment, gone in zip(segments, dead, strict=True):
        left = (segment.entry.rows - gone) * row_bytes
        if (group and size + left > LARGEST) or not (gone or segment.entry.rows < SMALL):
            if len(group) > 1 or buried:
                yield group
            group, size, buried = [], 0, 0
        if gone or segment.entry.rows < SMALL:
            group.append(segment)
            size, buried = size + left, buried + gone
    if len(group) > 1 or buried:
        yield group


def merge(
    store: Store,
    encoding: tables.Encoding,
    segments: Sequence[Segment],
    dead: Sequence[npt.NDArray[np.bool_]],
) -> list[SegmentEntry]:
    """Write the rows of some segments that are not dead, in the order of their keys.

    Args:
        store: whose writer lock the caller holds.
        encoding: of the segments.
        segments: of any key ranges; no key twice.
        dead: bool (n,) a segment.

    Returns:
        See `write_again`; none where no row is left.

    Raises:
        GalleryError: the disk is full or fails.
    """
    alive = [np.flatnonzero(~gone) for gone in dead]
    keys = np.concatenate([s.all_keys()[rows] for s, rows in zip(segments, alive, strict=True)])
    if not len(keys):
        return []
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
) -> list[SegmentEntry]:
    """Write stored rows again, bit for bit, a block at a time.

    Args:
        store: whose writer lock the caller holds.
        encoding: of the segments.
        segments: that the rows lie in.
        which: int64 (n,), the segment of each row, n > 0.
        offsets: int64 (n,), its place there.
        keys: int64 (n,) ascending, those that they will have.

    Returns:
        The new segments, none of more than LARGEST bytes of rows, not yet in the catalogue.

    Raises:
        GalleryError: the disk is full or fails; nothing that was written is left.
    """

    def pieces(name: str, rows: slice) -> Iterator[npt.NDArray[np.generic]]:
        arrays = [getattr(segment, name) for segment in segments]
        step = rows_at_once(arrays[0].shape[1:], _BLOCK)
        for start in range(rows.start, rows.stop, step):
            part = slice(start, min(start + step, rows.stop))
            out = np.empty((part.stop - part.start, *arrays[0].shape[1:]), arrays[0].dtype)
            for number in np.unique(which[part]):
                here = which[part] == number
                out[here] = arrays[number][offsets[part][here]]
            yield out

    def tensors(rows: slice) -> list[Tensor]:
        own = keys[rows]
        names = {"rows": encoding.dtype}
        if encoding.dtype == "int8":
            names["scales"] = "float32"
        found = []
        for name, dtype in names.items():
            shape = (len(own), *getattr(segments[0], name).shape[1:])
            found.append(Tensor(name, dtype, shape, pieces(name, rows)))
        if own[-1] - own[0] + 1 != len(own):
            found.append(Tensor("keys", "int64", own.shape, [own]))
        return found

    return write_parts(store, keys, encoding.row_bytes, tensors)


def write_parts(
    store: Store,
    keys: npt.NDArray[np.int64],
    row_bytes: int,
    tensors: Callable[[slice], Sequence[Tensor]],
) -> list[SegmentEntry]:
    """Write rows as segments of at most LARGEST bytes each.

    Args:
        store: whose writer lock the caller holds.
        keys: int64 (n,) ascending, n > 0.
        row_bytes: what a row takes.
        tensors: gives those of a part of the rows.

    Returns:
        The segments, not yet in the catalogue.

    Raises:
        GalleryError: the disk is full or fails; nothing that was written is left.
    """
    step = max(1, LARGEST // row_bytes)
    written: list[SegmentEntry] = []
    try:
        for start in range(0, len(keys), step):
            part = slice(start, min(start + step, len(keys)))
            own = keys[part]
            written.append(store.write_segment(tensors(part), int(own[0]), int(own[-1]), len(own)))
    except BaseException:
        store.remove_files(written)
        raise
    return written
