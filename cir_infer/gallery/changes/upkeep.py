"""What a commit does for the rows behind it, so that a gallery that changes each day needs nobody's care.

The caller holds the writer lock and has just committed; what is done here are commits of their own, and a
gallery is whole between them. Each commit pays for no more than a few times what it has changed, but for
LARGEST bytes that any of them may write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cir_infer.errors import GalleryError
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.changes.compaction import LARGEST, SMALL, replace
from cir_infer.gallery.rows.segments import CHUNK, Segment, SegmentEntry
from cir_infer.gallery.store import ITEMS_AT_ONCE, Store

__all__ = ["keep_up", "newest_small"]

MANY = 64
"""So many small segments are merged on the way."""
SPARSE = 4
"""Where one row of so many is buried, a segment is written again: SPARSE - 1 rows for each that goes."""
LEAST = 1 << 20
"""Fewer bytes of buried rows are not worth a commit."""

_log = logging.getLogger(__name__)


def keep_up(store: Store, buried: int, added: bool = True) -> None:
    """Drop the rows that removed and replaced items have left, and merge the newest of many small segments.

    Segments of which nothing is left go with the next rows that come, whatever their size: a catalogue whose
    every item is replaced each night has no more rows by the morning. Those of which much is buried are
    written again without it. What fails here is logged and tried again by the next commit: the gallery is
    whole either way.

    Args:
        store: whose writer lock the caller holds.
        buried: how many items the commit before has buried.
        added: whether it has added rows.
    """
    store.forget_snapshot()  # of before the commit: it would keep what goes here
    try:
        state, known = _look(store)
        if added:
            dead = [rows.segment for rows in known if rows.segment is not None and not rows.kept]
            if dead:
                replace(store, state, dead)
                state, known = _look(store)
            newest = newest_small(state.segments)
            if len(newest) > 1:
                replace(store, state, [store.segment(entry, state.encoding) for entry in newest])
                state, known = _look(store)
        for group in list(_sparse(store, known, state.encoding.row_bytes * buried)):
            replace(store, state, [store.segment(rows.entry, state.encoding) for rows in group])
        if buried > ITEMS_AT_ONCE:
            store.tidy(2 * buried)
    except GalleryError as error:
        _log.warning("%s: buried rows and small commits are left for now: %s", store.path, error)


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


@dataclass
class _Rows:
    """A segment as far as the choice of what is written again needs it.

    Attributes:
        entry: of the catalogue.
        segment: opened, where much of it is buried, or may be.
        gone: bytes of its rows that are buried.
        kept: bytes of the others.
        sparse: whether it is worth being written again.
    """

    entry: SegmentEntry
    segment: Segment | None
    gone: int
    kept: int
    sparse: bool


def _look(store: Store) -> tuple[tables.State, list[_Rows]]:
    """The gallery as it is, and its segments; few are looked into to know what is buried in them."""
    state = store.catalogue.state()
    known = []
    for entry in state.segments:
        segment, buried = None, min(entry.rows, _buried_within(entry, state.buried))
        if buried * SPARSE >= entry.rows:  # of keys in gaps of its own, too, whose items wait for readers
            segment = store.segment(entry, state.encoding)
            buried = int(segment.buried(state.buried).sum())
        size, gone = state.encoding.row_bytes, buried * state.encoding.row_bytes
        sparse = buried * SPARSE >= entry.rows and gone >= LEAST
        known.append(_Rows(entry, segment, gone, entry.rows * size - gone, sparse))
    return state, known


def _buried_within(entry: SegmentEntry, chunks: Mapping[int, bytes]) -> int:
    """How many keys are buried from a segment's first to its last; not all of them need be its own."""
    count = 0
    for chunk in range(entry.first_key // CHUNK, entry.last_key // CHUNK + 1):
        bits = chunks.get(chunk)
        if bits is not None:
            low = max(0, entry.first_key - chunk * CHUNK)
            high = min(CHUNK, entry.last_key + 1 - chunk * CHUNK)
            known = int.from_bytes(bits, "little") >> low
            count += (known & ((1 << (high - low)) - 1)).bit_count()
    return count


def _sparse(store: Store, known: Sequence[_Rows], changed: int) -> Iterator[Sequence[_Rows]]:
    """Groups of neighbours to write again, those first that free most.

    A group is a sparse segment with its sparse neighbours, and with others as long as these cost no more
    than is freed: so what is left of old segments becomes few again. Fewer than SPARSE rows are written for
    each that goes.

    Args:
        store: for what waits in it, and to tell.
        known: its segments.
        changed: bytes of the rows that the commit before has buried.
    """
    if not any(rows.sparse for rows in known):
        return
    budget = max(LARGEST, SPARSE * changed)
    room = sum(rows.kept for rows in known) - _waiting(store)
    taken: set[int] = set()
    for number in sorted(range(len(known)), key=lambda number: -known[number].gone):
        if number in taken or not known[number].sparse:
            continue
        places = _neighbours(known, number, taken)
        group = [known[place] for place in places]
        size = sum(rows.kept for rows in group)
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
        taken.update(places)
        yield group


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
