"""What a commit does for the rows behind it, so that a gallery that changes each day needs nobody's care.

The caller holds the writer lock and has just committed; what is done here are commits of their own, and a
gallery is whole between them. Each commit pays for no more than a few times what it has changed, but for
LARGEST bytes that any of them may write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from cir_infer.errors import GalleryError
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.changes.compaction import LARGEST, SMALL, replace
from cir_infer.gallery.rows.segments import CHUNK, Segment, SegmentEntry
from cir_infer.gallery.store import ITEMS_AT_ONCE, Store

__all__ = ["drop_buried", "keep_up", "merge_newest", "newest_small"]

MANY = 64
"""So many small segments are merged on the way."""
SPARSE = 4
"""Where one row of so many is buried, a segment is written again: SPARSE - 1 rows for each that goes."""
LEAST = 1 << 20
"""Fewer bytes of buried rows are not worth a commit."""

_log = logging.getLogger(__name__)


def keep_up(store: Store, buried: int) -> None:
    """What a commit that adds rows does for those before: see `merge_newest` and `drop_buried`."""
    merge_newest(store)
    drop_buried(store, buried)


def merge_newest(store: Store) -> None:
    """Merge the newest segments if there are many small ones, so that many small commits stay cheap to read.

    Segments of which nothing is left go too, whatever their size: a catalogue whose every item is replaced
    each night has no more rows by the morning. What fails here is logged and tried again by the next commit:
    the gallery is whole either way. The caller holds the writer lock.
    """
    store.forget_snapshot()  # of before the commit: it would keep what goes here
    try:
        state = store.catalogue.state()
        dead = _dead(store, state)
        if dead:
            replace(store, state, dead)
            state = store.catalogue.state()
        newest = newest_small(state.segments)
        if len(newest) > 1:
            replace(store, state, [store.segment(entry, state.encoding) for entry in newest])
    except GalleryError as error:
        _log.warning("%s: small commits are not merged for now: %s", store.path, error)


def drop_buried(store: Store, buried: int) -> None:
    """Write segments again of which much is buried, without it.

    What fails here is logged and tried again by the next commit.

    Args:
        store: whose writer lock the caller holds.
        buried: how many items the commit before has buried.
    """
    store.forget_snapshot()
    try:
        state = store.catalogue.state()
        for group in list(_sparse(store, state, buried)):
            replace(store, state, group)
        if buried > ITEMS_AT_ONCE:
            store.tidy(2 * buried)
    except GalleryError as error:
        _log.warning("%s: buried rows are left for now: %s", store.path, error)


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


class _Rows:
    """A segment as far as the choice of what is written again needs it."""

    def __init__(self, entry: SegmentEntry, buried: int, row_bytes: int) -> None:
        self.entry = entry
        self.sparse = buried * SPARSE >= entry.rows and buried * row_bytes >= LEAST
        self.gone = buried * row_bytes
        self.kept = (entry.rows - buried) * row_bytes


def _sparse(store: Store, state: tables.State, buried: int) -> Iterator[list[Segment]]:
    """Groups of neighbours to write again, those first that free most.

    A group is a sparse segment with its sparse neighbours, and with others as long as these cost no more
    than is freed: so what is left of old segments becomes few again. Fewer than SPARSE rows are written for
    each that goes.
    """
    row_bytes = state.encoding.row_bytes
    known = []
    for entry in state.segments:
        rows = _Rows(entry, min(entry.rows, _buried_within(entry, state.buried)), row_bytes)
        if rows.sparse:  # of keys in gaps of its own, too, whose items wait for readers
            segment = store.segment(entry, state.encoding)
            rows = _Rows(entry, int(segment.buried(state.buried).sum()), row_bytes)
        known.append(rows)
    budget = max(LARGEST, SPARSE * buried * row_bytes)
    room = sum(rows.kept for rows in known) - _waiting(store)
    taken: set[int] = set()
    for number in sorted(range(len(known)), key=lambda number: -known[number].gone):
        if number in taken or not known[number].sparse:
            continue
        group = _neighbours(known, number, taken)
        size = sum(known[place].kept for place in group)
        if size > room:
            store.tell_once(
                "its rows are not written again while readers of older generations keep as many from going"
            )
            return
        if size > budget:
            if size > LARGEST and len(group) == 1:
                store.tell_once(
                    "a file of %s rows is too large to be written again by a commit, and one row in %s of it "
                    "or more is of no item; cir-gallery compact drops them",
                    f"{known[number].entry.rows:,}",
                    SPARSE,
                )
            continue
        budget, room = budget - size, room - size
        taken.update(group)
        yield [store.segment(known[place].entry, state.encoding) for place in group]


def _neighbours(known: Sequence[_Rows], seed: int, taken: set[int]) -> range:
    """The places of a group around a sparse segment, none of those that are taken, LARGEST bytes at most."""
    first, behind = seed, seed + 1
    size = known[seed].kept
    free = known[seed].gone
    for step in (-1, 1):
        place = seed + step
        while 0 <= place < len(known) and place not in taken:
            rows = known[place]
            cost = 0 if rows.sparse else rows.kept
            if size + rows.kept > LARGEST or cost > free:
                break
            size, free = size + rows.kept, free - cost
            first, behind = min(first, place), max(behind, place + 1)
            place += step
    return range(first, behind)


def _waiting(store: Store) -> int:
    """How many bytes of rows wait for readers of older generations to end."""
    with store.catalogue.reading() as connection:
        return tables.waiting_bytes(connection)
