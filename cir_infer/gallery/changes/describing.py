"""Other metadata for items that stay what they are: one commit. The caller holds the writer lock.

An item never changes under its key: snapshots, answers of filters, backups and whoever follows a gallery know
it by that. So it gets a new key, and its row is written again, bit for bit, beside its new metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.lineage import StoredItem, sound_items
from cir_infer.gallery.catalogue.schema import damaged
from cir_infer.gallery.changes.additions import Missing, check_missing, commit_items, held_ids, next_keys
from cir_infer.gallery.changes.compaction import write_again
from cir_infer.gallery.metadata import metadata as meta
from cir_infer.gallery.rows.segments import Segment, SegmentEntry
from cir_infer.gallery.store import Store

__all__ = ["describe_items"]

Keys = npt.NDArray[np.int64]


def describe_items(
    store: Store, ids: Sequence[str], given: Sequence[meta.Encoded], merge: bool, missing: Missing
) -> int:
    """Give items other metadata; see `Gallery.set_metadata`.

    Args:
        store: whose writer lock the caller holds.
        ids: of the items.
        given: their metadata.
        merge: whether fields that are not given stay, and those given as null go.
        missing: what to do with ids that are not held.

    Returns:
        How many items have other metadata than before.
    """
    held = held_ids(store, ids)
    check_missing(store, held, ids, missing)
    wanted = {held[item]: entry for item, entry in zip(ids, given, strict=True) if item in held}
    with store.catalogue.reading() as connection:
        known = {item.key: item for item in sound_items(connection, list(wanted))}
    changed: dict[int, tables.ItemRecord] = {}
    for key, entry in wanted.items():
        before = known[key]
        if merge:
            entry = _merged(before, entry)
        if entry.text != before.metadata:
            changed[key] = before.record(entry)
    if not changed:
        return 0
    rows = _rows_again(store, np.array(list(changed), np.int64))
    commit_items(store, list(changed.values()), rows, list(changed))
    return len(changed)


def _merged(before: StoredItem, given: meta.Encoded) -> meta.Encoded:
    """An item's metadata with the fields that are given, and without those that are given as null."""
    fields = meta.decode(given.text)
    kept = meta.decode(before.metadata) | fields
    gone = {name for name, value in fields.items() if value is None}
    return meta.encode({name: value for name, value in kept.items() if name not in gone}, before.id)


def _rows_again(store: Store, old: Keys) -> list[tuple[int, SegmentEntry]]:
    """Write the rows of some keys for as many new ones; the segments, with the numbers of their encodings.

    First those that answer, then what an unfinished re-encoding has of them: else what is told of items
    while a bundle is changed would have their images encoded once more, and such a change never end.
    """
    with store.catalogue.reading() as connection:
        connection.execute("BEGIN")
        state = tables.read_state(connection)
        sets = [(state.encoding, state.segments)]
        for encoding in tables.pending(connection):
            sets.append((encoding, tables.segments_of(connection, encoding.number)))
    new = next_keys(store, len(old))
    written: list[tuple[int, SegmentEntry]] = []
    try:
        for encoding, entries in sets:
            segments = [store.segment(entry, encoding) for entry in entries]
            which, offsets = _places(segments, old)
            there = np.flatnonzero(which >= 0)
            if encoding is state.encoding and len(there) < len(old):
                raise damaged("an item has no row")
            if len(there):
                rows = write_again(store, encoding, segments, which[there], offsets[there], new[there])
                written += [(encoding.number, entry) for entry in rows]
    except BaseException:
        store.remove_files([entry for _, entry in written])
        raise
    return written


def _places(segments: Sequence[Segment], keys: Keys) -> tuple[Keys, Keys]:
    """In which segment each key lies, -1 for none, and where there."""
    which, offsets = np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.int64)
    for number, segment in enumerate(segments):
        places = segment.places(keys)
        here = places >= 0
        which[here], offsets[here] = number, places[here]
    return which, offsets
