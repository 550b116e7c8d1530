"""Items of a gallery without a query: one, a page of a list, some by chance; and what can be filtered."""

from __future__ import annotations

import random
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.gallery import Snapshot
from cir_infer.gallery.inspection.fields import fields_of
from cir_infer.gallery.snapshot import Item
from cir_infer.serving.problems import Problem
from cir_infer.serving.schemas import ItemAnswer, ItemsAnswer
from cir_infer.serving.thumbnails import image_address

__all__ = ["Fields", "item_of", "items_after", "items_by_chance", "none_of_this_id", "told_item"]

_FRESH = 60.0


def told_item(item: Item) -> ItemAnswer:
    """An item as callers see it."""
    return ItemAnswer(item.id, item.metadata, image_address(item.id, item.source))


def item_of(snapshot: Snapshot, item: str) -> Item:
    """An item by its id.

    Raises:
        Problem: there is none.
    """
    row = snapshot.row(item) if item and len(item) <= 4096 else None
    if row is None:
        raise none_of_this_id()
    return snapshot.items([row])[0]


def none_of_this_id() -> Problem:
    """What is said of an id that no item has."""
    return Problem("not-found", "the gallery holds no item of this id (any more)")


def items_after(snapshot: Snapshot, mark: str, where: Any, after: str, limit: int) -> ItemsAnswer:
    """Items in the order in which they were added.

    Args:
        snapshot: of the gallery.
        mark: see `Opened.mark`.
        where: a filter.
        after: of the page before, empty for the first one.
        limit: how many.

    Raises:
        Problem: `after` is of no page, or of one of another gallery: of what took its place there is no next.
    """
    key, _, marked = after.partition("-")
    if after and not (len(key) <= 18 and key.isascii() and key.isdecimal() and len(marked) == len(mark)):
        raise Problem("invalid-argument", "after is not what an answer before said")
    if after and marked != mark:
        raise Problem(
            "invalid-argument",
            "after is of a gallery, or of shards, whose place others took; begin again without it",
        )
    rows = _matching(snapshot, where)
    at = _first_behind(snapshot, rows, int(key) if after else -1)
    chosen = rows[at : at + limit]
    more = at + limit < len(rows)
    last = f"{int(snapshot.keys(chosen[-1:])[0])}-{mark}" if more and len(chosen) else None
    return ItemsAnswer([told_item(item) for item in snapshot.items(chosen)], last, len(rows))


def items_by_chance(snapshot: Snapshot, where: Any, limit: int) -> ItemsAnswer:
    """Some items, others each time."""
    rows = _matching(snapshot, where)
    chosen = [int(rows[at]) for at in random.sample(range(len(rows)), min(limit, len(rows)))]
    return ItemsAnswer([told_item(item) for item in snapshot.items(chosen)], None, len(rows))


def _matching(snapshot: Snapshot, where: Any) -> npt.NDArray[np.int64]:
    mask = snapshot.where(where)
    if mask is None:
        return snapshot.live_rows()
    return np.flatnonzero(np.unpackbits(mask, count=snapshot.row_count, bitorder="little"))


def _first_behind(snapshot: Snapshot, rows: npt.NDArray[np.int64], key: int) -> int:
    """The place of the first row whose key is greater; keys ascend, and the item of `key` may be gone."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if int(snapshot.keys(rows[middle : middle + 1])[0]) > key:
            high = middle
        else:
            low = middle + 1
    return low


class Fields:
    """The fields of the metadata, read anew when the gallery has changed, and at most once a minute."""

    def __init__(self) -> None:
        self._known: tuple[object, float, list[dict[str, Any]]] | None = None

    def of(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """See `Gallery.fields`; blocks."""
        known = self._known
        if known is not None and (known[0] == snapshot.generation or time.monotonic() - known[1] < _FRESH):
            return known[2]
        found = [asdict(entry) for entry in fields_of(snapshot)]
        self._known = (snapshot.generation, time.monotonic(), found)
        return found
