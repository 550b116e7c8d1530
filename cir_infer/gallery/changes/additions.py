"""Adding, replacing and removing items: each is one commit. The caller holds the writer lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.changes.compaction import merge_newest
from cir_infer.gallery.rows.vectors import checked_vectors, row_tensors, to_rows
from cir_infer.gallery.store import Store

__all__ = ["EXISTING", "Existing", "add_items", "already_held", "held_ids", "remove_items"]

Existing = Literal["error", "replace", "skip"]
EXISTING: tuple[Existing, ...] = ("error", "replace", "skip")


def held_ids(store: Store, ids: Sequence[str]) -> dict[str, int]:
    """The keys of those ids that the gallery holds."""
    with store.catalogue.reading() as connection:
        return tables.live_keys(connection, ids)


def already_held(store: Store, held: Mapping[str, int], ids: Sequence[str]) -> GalleryError:
    """The error for ids that are held though they must not be."""
    first = next(item for item in ids if item in held)
    return GalleryError(
        f"{store.path}: already holds id {shown(first)} ({len(held)} of {len(ids)} ids in this call); "
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
    with store.catalogue.reading() as connection:
        first_key = tables.header(connection, "next_key")
    last_key = first_key + len(items) - 1
    entry = store.write_segment(row_tensors(encoding.dtype, stored, scales), first_key, last_key, len(items))

    def change(connection: tables.Connection) -> None:
        tables.insert_items(connection, list(enumerate(items, first_key)))
        tables.set_buried(connection, held.values(), True)
        tables.insert_segment(connection, encoding.number, entry)
        tables.set_header(connection, "next_key", last_key + 1)

    store.commit(change)
    merge_newest(store)
    return len(items)


def remove_items(store: Store, ids: Sequence[str], missing: Literal["error", "skip"]) -> int:
    """Remove items; see `Gallery.remove`. Returns how many."""
    held = held_ids(store, ids)
    if missing == "error" and len(held) < len(ids):
        first = next(item for item in ids if item not in held)
        raise GalleryError(
            f"{store.path}: holds no id {shown(first)} ({len(ids) - len(held)} of {len(ids)} "
            "ids in this call); pass missing='skip' (--skip-missing) to pass over such ids"
        )
    if held:
        store.commit(lambda connection: tables.set_buried(connection, held.values(), True))
    return len(held)
