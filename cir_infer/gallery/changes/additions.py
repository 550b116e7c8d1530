"""Adding, replacing and removing items: each is one commit. The caller holds the writer lock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.changes.compaction import write_parts
from cir_infer.gallery.changes.upkeep import keep_up
from cir_infer.gallery.rows.segments import SegmentEntry
from cir_infer.gallery.rows.tensors import Tensor
from cir_infer.gallery.rows.vectors import checked_vectors, row_tensors, to_rows
from cir_infer.gallery.store import Store

__all__ = [
    "EXISTING",
    "MISSING",
    "Existing",
    "Missing",
    "add_items",
    "already_held",
    "check_missing",
    "commit_items",
    "held_ids",
    "next_keys",
    "remove_items",
]

Existing = Literal["error", "replace", "skip"]
EXISTING: tuple[Existing, ...] = ("error", "replace", "skip")
Missing = Literal["error", "skip"]
MISSING: tuple[Missing, ...] = ("error", "skip")


def held_ids(store: Store, ids: Sequence[str]) -> dict[str, int]:
    """The keys of those ids that the gallery holds."""
    with store.catalogue.reading() as connection:
        return tables.live_keys(connection, ids)


def already_held(store: Store, held: Mapping[str, int], ids: Sequence[str]) -> GalleryError:
    """The error for ids that are held though they must not be."""
    first = next(item for item in ids if item in held)
    return GalleryError(
        f"{store.path}: already holds id {shown(first)} ({len(held):,} of {len(ids):,} ids in this call); "
        "pass existing='replace' or existing='skip'"
    )


def add_items(
    store: Store,
    items: list[tables.ItemRecord],
    array: Any,
    existing: Existing,
    check: Callable[[tables.Encoding], None],
) -> int:
    """Add items whose vectors are known; see `Gallery.add_vectors`.

    Args:
        store: whose writer lock the caller holds.
        items: what to add.
        array: their vectors.
        existing: what to do with ids that are held.
        check: raises where the rows would be of another encoding than the gallery's.

    Returns:
        How many items were added or replaced.
    """
    encoding = store.catalogue.state().encoding
    check(encoding)
    ids = [item.id for item in items]
    rows = checked_vectors(array, ids, encoding.row_shape, encoding.dtype)
    held = held_ids(store, ids)
    if held and existing == "error":
        raise already_held(store, held, ids)
    if held and existing == "skip":
        kept = [i for i, item in enumerate(items) if item.id not in held]
        items, rows, held = [items[i] for i in kept], rows[kept], {}
    if not items:
        return 0
    stored, scales = to_rows(rows, encoding.dtype)

    def tensors(part: slice) -> list[Tensor]:
        return row_tensors(encoding.dtype, stored[part], None if scales is None else scales[part])

    entries = write_parts(store, next_keys(store, len(items)), encoding.row_bytes, tensors)
    commit_items(store, items, [(encoding.number, entry) for entry in entries], held.values())
    return len(items)


def next_keys(store: Store, count: int) -> npt.NDArray[np.int64]:
    """The keys of the next so many items."""
    with store.catalogue.reading() as connection:
        first = tables.header(connection, "next_key")
    return np.arange(first, first + count, dtype=np.int64)


def commit_items(
    store: Store,
    items: Sequence[tables.ItemRecord],
    rows: Sequence[tuple[int, SegmentEntry]],
    buried: Collection[int],
) -> None:
    """Add items whose rows are written, in place of those of some keys.

    Args:
        store: whose writer lock the caller holds.
        items: they get the next keys, in their order.
        rows: the segments that hold them, each with the number of its encoding.
        buried: the keys.
    """
    keys = next_keys(store, len(items)).tolist()

    def change(connection: tables.Connection) -> None:
        tables.insert_items(connection, list(zip(keys, items, strict=True)))
        tables.set_buried(connection, buried, True)
        for encoding, entry in rows:
            tables.insert_segment(connection, encoding, entry)
        tables.set_header(connection, "next_key", keys[-1] + 1)

    store.commit(change)
    keep_up(store, len(buried))


def remove_items(store: Store, ids: Sequence[str], missing: Missing) -> int:
    """Remove items; see `Gallery.remove`. Returns how many."""
    held = held_ids(store, ids)
    check_missing(store, held, ids, missing)
    if held:
        store.commit(lambda connection: tables.set_buried(connection, held.values(), True))
        keep_up(store, len(held), added=False)
    return len(held)


def check_missing(store: Store, held: Mapping[str, int], ids: Sequence[str], missing: Missing) -> None:
    """Raise `GalleryError` for ids that are not held, unless these are to be passed over."""
    if missing == "error" and len(held) < len(ids):
        first = next(item for item in ids if item not in held)
        raise GalleryError(
            f"{store.path}: holds no id {shown(first)} ({len(ids) - len(held):,} of {len(ids):,} "
            "ids in this call); pass missing='skip' (--skip-missing) to pass over such ids"
        )
