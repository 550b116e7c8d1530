"""A snapshot: one generation of a gallery, unchanged for as long as it is held."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.arguments import checked_rows, named_ids
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.catalogue import Catalogue
from cir_infer.gallery.disk.folder import READERS
from cir_infer.gallery.disk.locks import Pin
from cir_infer.gallery.filters import conditions, filters
from cir_infer.gallery.metadata import metadata as meta
from cir_infer.gallery.rows.segments import Segment
from cir_infer.gallery.rows.vectors import shape_text
from cir_infer.processes.cache import BoundedCache
from cir_infer.processes.staying import Staying
from cir_infer.scoring.contract import Rows

__all__ = ["Item", "Mask", "RowNumbers", "Snapshot"]

_TOLD = 4096
_TOLD_BYTES = _KEPT_BYTES = 8 << 20
_MASK_BYTES = 64 << 20

Mask = npt.NDArray[np.uint8]
RowNumbers = Sequence[int] | npt.NDArray[np.int64]
_Stored: TypeAlias = "tuple[str, Any, str | None]"
"""Id, metadata as it is stored, and source."""


class Item(NamedTuple):
    """What the gallery says about a row.

    Attributes:
        id: the item's id.
        metadata: its metadata, an empty dictionary where it has none.
        source: where its image came from (a path), None where nobody said.
    """

    id: str
    metadata: dict[str, Any]
    source: str | None


class Snapshot(Staying):
    """One generation of a gallery, for reading, from any number of threads.

    Row numbers run through all stored rows in the order in which items were added, removed items
    included; `live` says which of them count. Adding, removing and compacting do not touch a
    snapshot, in this process or another.

    Attributes:
        generation: the commit it shows.
        fingerprint: of the bundle that encoded the rows, None where nobody said.
        dimension: D.
        tokens_per_item: M, how many vectors of D values a row is.
        row_shape: (D,), or (M, D) where M is not 1.
        rows: all rows, memory-mapped.
        live: uint8 (ceil(N / 8),), bit r % 8 of byte r // 8 (least significant first) says whether
            row r counts; None where all do.
        count: how many rows count.
        next_key: every item key in it is smaller; see the catalogue.
    """

    stays = ("a snapshot", "copy the Gallery and take another one")
    refusal = GalleryError

    def __init__(
        self,
        state: tables.State,
        segments: Sequence[Segment],
        store: Catalogue,
        cache: filters.FilterCache,
        pin: Pin,
    ) -> None:
        self.generation = state.generation
        self.fingerprint = state.encoding.fingerprint
        self.dimension = state.encoding.dimension
        self.tokens_per_item = state.encoding.tokens_per_item
        self.row_shape = state.encoding.row_shape
        self.next_key = state.next_key
        self._segments = segments
        self._catalogue = store
        self._cache = cache
        self._masks: BoundedCache[conditions.Filter, Mask] = BoundedCache(_MASK_BYTES)
        self._told: BoundedCache[str, int] = BoundedCache(_TOLD_BYTES)  # rows by id
        self._kept: BoundedCache[int, _Stored] = BoundedCache(_KEPT_BYTES)  # by row
        self._pin = pin
        # By a weak reference: should an interrupt come first, the pin still goes with the snapshot.
        weakref.finalize(self, _release, weakref.ref(pin))
        self._first_keys = np.array([segment.entry.first_key for segment in segments], np.int64)
        self._starts = np.cumsum([0, *(segment.entry.rows for segment in segments)])
        encoding = state.encoding
        self.rows = _rows(
            [s.rows for s in segments], [s.scales for s in segments], encoding.dtype, encoding.row_shape
        )
        self._alive = self._live_rows(state.buried)
        total = int(self._starts[-1])
        self.count = total if self._alive is None else int(np.count_nonzero(self._alive))
        self.live: Mask | None = None if self._alive is None else np.packbits(self._alive, bitorder="little")

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        shape = shape_text(self.tokens_per_item, self.dimension)
        return f"<Snapshot {self.generation}: {self.count:,} rows x {shape} {self.rows.dtype}>"

    def _live_rows(self, buried: Mapping[int, bytes]) -> npt.NDArray[np.bool_] | None:
        if not buried or not self._segments:
            return None
        dead = np.concatenate([segment.buried(buried) for segment in self._segments])
        return ~dead if dead.any() else None

    @property
    def row_count(self) -> int:
        """How many rows there are, those of removed items included."""
        return int(self._starts[-1])

    @property
    def segment_count(self) -> int:
        """How many files the rows lie in; a compaction makes few of many."""
        return len(self._segments)

    @property
    def written_by(self) -> frozenset[str]:
        """The identities of the galleries that wrote its files; backups, and backups of these, share them."""
        return frozenset(s.gallery for s in self._segments if s.gallery is not None)

    # ---- rows to items

    def items(self, rows: RowNumbers) -> list[Item]:
        """Everything about rows, in one look-up.

        Raises:
            GalleryError: a row number is out of range.
        """
        found = self._stored(checked_rows(rows).tolist())
        return [Item(item, {} if data is None else meta.decode(data), source) for item, data, source in found]

    def _stored(self, rows: list[int]) -> list[_Stored]:
        """What the catalogue has of rows: asked once, for the same items are answered again and again."""
        kept = [self._kept.get(row) for row in rows]
        # Queries of one batch find the same rows.
        missing = [*dict.fromkeys(row for row, known in zip(rows, kept, strict=True) if known is None)]
        if not missing:
            return [known for known in kept if known is not None]
        columns = self._columns(("id", "metadata", "source"), missing)
        found = {
            row: (_text(item, "id"), data, _source(source))
            for row, (item, data, source) in zip(missing, columns, strict=True)
        }
        self._remember(found)
        return [found[row] if known is None else known for row, known in zip(rows, kept, strict=True)]

    def _remember(self, found: dict[int, _Stored]) -> None:
        """What was just answered is what is answered and refined next; a listing of the gallery is not."""
        if len(found) > _TOLD:
            return
        self._kept.put_all(
            (row, stored, 4 * sum(len(text) for text in stored if isinstance(text, str)))
            for row, stored in found.items()
        )
        self._told.put_all(
            (stored[0], row, len(stored[0]) * 4) for row, stored in found.items() if self._counts(row)
        )

    def ids(self, rows: RowNumbers) -> list[str]:
        """The ids of rows.

        Raises:
            GalleryError: a row number is out of range.
        """
        return [_text(item, "id") for (item,) in self._columns(("id",), rows)]

    def metadata(self, rows: RowNumbers) -> list[dict[str, Any]]:
        """The metadata of rows, an empty dictionary where an item has none."""
        return [meta.decode(data) for (data,) in self._columns(("metadata",), rows)]

    def sources(self, rows: RowNumbers) -> list[str | None]:
        """Where the images of rows came from (a path), None where nobody said."""
        return [_source(source) for (source,) in self._columns(("source",), rows)]

    def vector(self, row: int) -> npt.NDArray[np.float32]:
        """One row as float32 (D,), or (M, D) where it has several vectors.

        Raises:
            GalleryError: the row number is out of range.
        """
        row = int(checked_rows([row])[0])
        self._check_rows(row, row)
        vector: npt.NDArray[np.float32] = self.rows.take([row])[0]
        return vector

    def _columns(self, names: Sequence[str], rows: RowNumbers) -> list[tuple[Any, ...]]:
        keys = [int(key) for key in self.keys(rows)]
        values = self._catalogue.columns(names, keys)
        try:
            return [values[key] for key in keys]
        except KeyError as error:
            if not self._pin.is_seen:
                raise GalleryError(
                    f"the pin of generation {self.generation} was removed from {READERS}, and with "
                    "it what this snapshot still reads; take a new snapshot"
                ) from None
            raise GalleryError(
                f"the catalogue has no item {error}; run verify, restore the gallery from a copy"
            ) from None

    def keys(self, rows: RowNumbers) -> npt.NDArray[np.int64]:
        """The keys of the items of rows, int64 (n,)."""
        wanted = checked_rows(rows)
        if wanted.size:
            self._check_rows(int(wanted.min()), int(wanted.max()))
        if len(self._segments) == 1:
            return self._segments[0].keys_at(wanted)
        which = np.searchsorted(self._starts, wanted, side="right") - 1
        out = np.empty(len(wanted), np.int64)
        for number in np.flatnonzero(np.bincount(which)).tolist():
            at = which == number
            out[at] = self._segments[number].keys_at(wanted[at] - self._starts[number])
        return out

    def _check_rows(self, least: int, most: int) -> None:
        total = self.row_count
        if least < 0 or most >= total:
            number = shown(least if least < 0 else most, 40)
            raise GalleryError(f"row {number} asked of a snapshot with {total:,} rows")

    # ---- items to rows

    def row(self, item: str) -> int | None:
        """The row of an id, None where the gallery does not hold it (now)."""
        told = self._told.get(item) if isinstance(item, str) else None
        if told is not None:
            return told
        rows = self.rows_with(named_ids("id", [item]))
        if not len(rows):
            return None
        row = int(rows[0])
        self._told.put(item, row, len(item) * 4)
        return row

    def rows_with(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The rows of those ids that the gallery holds, in no order, for one look-up of many."""
        places = self.rows_of(np.array(self._catalogue.keys_of(ids), np.int64))
        places = places[places >= 0]
        return places if self._alive is None else places[self._alive[places]]

    def _counts(self, row: int) -> bool:
        return self._alive is None or bool(self._alive[row])

    def rows_of(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows of item keys, buried ones included, -1 for keys that are not here."""
        out = np.full(len(keys), -1, np.int64)
        which = np.searchsorted(self._first_keys, keys, side="right") - 1
        for number in np.flatnonzero(np.bincount(which[which >= 0])).tolist():
            here = which == number
            places = self._segments[number].places(keys[here])
            out[here] = np.where(places >= 0, places + self._starts[number], -1)
        return out

    def holds(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which item keys are among the live rows."""
        places = self.rows_of(keys)
        if self._alive is None:
            return places >= 0
        return (places >= 0) & self._alive[places]

    # ---- filters

    def where(self, expression: filters.Where | None) -> Mask | None:
        """The live rows that an expression matches.

        Args:
            expression: see `filters.parse`; None matches every live row.

        Returns:
            uint8 (ceil(N / 8),) as `live`; None where every row of the snapshot qualifies because
            nothing was asked and nothing was removed. Do not write to it.

        Raises:
            UsageError: the expression is malformed.
        """
        if expression is None:
            return self.live
        tree = filters.parse(expression)
        mask = self._masks.get(tree)
        if mask is None:
            matched = self._cache.matches(tree, self)
            if self._alive is not None:
                matched = matched & self._alive
            mask = np.packbits(matched, bitorder="little")
            mask.flags.writeable = False
            self._masks.put(tree, mask, mask.nbytes + conditions.size_of(tree))
        return mask

    def matching(self, expression: filters.Where | None) -> int:
        """How many live rows an expression matches, exactly."""
        if expression is None:
            return self.count
        mask = self.where(expression)
        assert mask is not None
        return int(np.unpackbits(mask).sum(dtype=np.int64))

    def live_rows(self) -> npt.NDArray[np.int64]:
        """The numbers of the live rows, ascending, int64 (count,)."""
        if self._alive is None:
            return np.arange(int(self._starts[-1]), dtype=np.int64)
        return np.flatnonzero(self._alive)


def _release(pin: weakref.ref[Pin]) -> None:
    held = pin()
    if held is not None:
        held.release()


def _rows(blocks: Sequence[Any], scales: Sequence[Any], dtype: str, shape: tuple[int, ...]) -> Rows:
    if not blocks:
        blocks, scales = [np.empty((0, *shape), np.dtype(dtype))], [np.empty((0, *shape[:-1]), np.float32)]
    return Rows(tuple(blocks), tuple(scales) if dtype == "int8" else None)


def _source(value: Any) -> str | None:
    return None if value is None else _text(value, "source")


def _text(value: Any, what: str) -> str:
    """A value of a column of texts, in which SQLite keeps bytes as well if a stranger wrote them."""
    if not isinstance(value, str):
        raise GalleryError(f"a stored {what} is damaged (not a text); run verify")
    return value
