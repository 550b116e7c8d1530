"""The galleries of a sharded one, looked at as one: for browsing, and for what is said of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.gallery import Gallery, Snapshot
from cir_infer.gallery.snapshot import Item
from cir_infer.shards.layout import ShardedGallery, shard_of
from cir_infer.shards.listing import Listing

__all__ = ["SeveralGalleries", "SeveralSnapshots"]

_KEYS = 48
"""Bits of a key within a shard; the shard's number stands above them, so keys ascend."""


class SeveralSnapshots:
    """Snapshots of all shards; rows are numbered through.

    Args:
        snapshots: in the order of the shards.

    Attributes:
        count: how many items there are.
        generation: changes whenever one of them does.
        row_count: how many rows there are.
        rows: those of the first, for their type.
    """

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots
        self._starts = np.cumsum([0, *(one.row_count for one in snapshots)])
        self.count = sum(one.count for one in snapshots)
        self.generation = sum(one.generation for one in snapshots)
        self.row_count = int(self._starts[-1])
        self.rows = snapshots[0].rows

    def row(self, item: str) -> int | None:
        """See `Snapshot.row`: an id is in the shard that it says."""
        number = shard_of(item, len(self._snapshots))
        row = self._snapshots[number].row(item)
        return None if row is None else int(self._starts[number]) + row

    def items(self, rows: Any) -> list[Item]:
        """See `Snapshot.items`."""
        return self._gathered(rows, lambda one, mine: one.items(mine))

    def metadata(self, rows: Any) -> list[dict[str, Any]]:
        """See `Snapshot.metadata`."""
        return self._gathered(rows, lambda one, mine: one.metadata(mine))

    def keys(self, rows: Any) -> npt.NDArray[np.int64]:
        """Keys that ascend with the rows of all shards."""
        wanted = np.asarray(rows, np.int64)
        found = self._gathered(wanted, lambda one, mine: one.keys(mine).tolist())
        return (self._which(wanted) << _KEYS) | np.array(found, np.int64)

    def live_rows(self) -> npt.NDArray[np.int64]:
        """See `Snapshot.live_rows`."""
        parts = [one.live_rows() + start for one, start in zip(self._snapshots, self._starts, strict=False)]
        return np.concatenate(parts)

    def where(self, expression: Any) -> npt.NDArray[np.uint8] | None:
        """See `Snapshot.where`.

        Raises:
            UsageError: the expression is malformed.
        """
        masks = [one.where(expression) for one in self._snapshots]
        if all(mask is None for mask in masks):
            return None
        flags = [
            np.ones(one.row_count, np.uint8)
            if mask is None
            else np.unpackbits(mask, count=one.row_count, bitorder="little")
            for one, mask in zip(self._snapshots, masks, strict=True)
        ]
        return np.packbits(np.concatenate(flags), bitorder="little")

    def _which(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._starts, rows, side="right").astype(np.int64) - 1

    def _gathered(self, rows: Any, ask: Any) -> list[Any]:
        wanted = np.asarray(rows, np.int64)
        which, found = self._which(wanted), [None] * len(wanted)
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number)
            mine = ask(self._snapshots[number], wanted[places] - self._starts[number])
            for place, value in zip(places.tolist(), mine, strict=True):
                found[place] = value
        return found


class SeveralGalleries:
    """A sharded gallery, for a service that reads it.

    Args:
        gallery: opened read-only; closed with this.
    """

    def __init__(self, gallery: ShardedGallery) -> None:
        self._gallery = gallery
        self._known: tuple[list[Snapshot], SeveralSnapshots] | None = None

    @property
    def fingerprint(self) -> str | None:
        """Of the bundle that made the rows."""
        return self._gallery.fingerprint

    @property
    def uuid(self) -> str:
        """Which shards these are, in their order."""
        return " ".join(str(shard.uuid) for shard in self._gallery.shards)

    @property
    def listing(self) -> Listing:
        """What its `shards.json` said."""
        return self._gallery.listing

    @property
    def shards(self) -> list[Gallery]:
        """The galleries."""
        return self._gallery.shards

    def __len__(self) -> int:
        return len(self._gallery)

    def snapshot(self) -> SeveralSnapshots:
        """The newest of each."""
        newest = [shard.snapshot() for shard in self._gallery.shards]
        known = self._known
        if known is None or any(old is not new for old, new in zip(known[0], newest, strict=True)):
            self._known = known = newest, SeveralSnapshots(newest)
        return known[1]

    def close(self) -> None:
        """Close the galleries."""
        self._gallery.close()
