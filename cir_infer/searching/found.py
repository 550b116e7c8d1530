"""What answers a query that is composed: one gallery, or many; and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.errors import CirError, GalleryError, shown
from cir_infer.gallery import Snapshot
from cir_infer.gallery.snapshot import Item
from cir_infer.processes.ending import native_call
from cir_infer.runtime.chains import Chains
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK
from cir_infer.searching.recognition import same_rows

__all__ = [
    "NO_REFERENCES",
    "Found",
    "Held",
    "OneGallery",
    "References",
    "Source",
    "found_in",
    "held_in",
    "row_of",
]

Floats = npt.NDArray[np.float32]


class References(NamedTuple):
    """What shows a query's own reference.

    Attributes:
        rows: of each query, the row of its reference, (D,) or (M, D), to say which answers show it, or None;
            none at all where nothing is to be said.
        looser: so many times as far apart as in float32 may encodings of one picture be (`LOOSER`).
    """

    rows: Sequence[Floats | None] = ()
    looser: float = 1.0


NO_REFERENCES = References()


class Found(NamedTuple):
    """The answers to Q queries, best first.

    Attributes:
        top: the best rows of each query, (Q, k).
        items: what is said of them, query by query; the places without a row are missing.
        same: bool (Q, k), the rows that show the query's reference, as far as that was asked.
        size: how many items could have been answered.
        fingerprint: of the bundle that made the rows, None where nobody said.
        generations: the commit that answered; of several galleries each its own, None where
            one did not answer.
        coverage: the part of all items that were looked at; 1.0 is all.
        elsewhere: bool (Q, k), the rows of which nobody knows that they are on this machine: what their items
            say of files is of another. None where all are here.
    """

    top: TopK
    items: list[list[Item]]
    same: npt.NDArray[np.bool_]
    size: int
    fingerprint: str | None
    generations: tuple[int | None, ...]
    coverage: float = 1.0
    elsewhere: npt.NDArray[np.bool_] | None = None


class Held(NamedTuple):
    """An item that is there.

    Attributes:
        rows: its one row, as it is stored.
        told: what the gallery says of it.
        fingerprint: of the bundle that made the row, None where nobody said.
    """

    rows: Rows
    told: Callable[[], Item]
    fingerprint: str | None

    @property
    def vector(self) -> Floats:
        """The row, float32 (D,), or (M, D) where it is several vectors."""
        block = self.rows.blocks[0]
        vector: Floats = (
            self.rows.take([0])[0] if self.rows.scales else block[0].astype(np.float32, copy=False)
        )
        return vector


class Source(Protocol):
    """What answers composed queries. Filters and excluded ids are its own."""

    @property
    def size(self) -> int:
        """At least as many as there are items."""
        ...

    @property
    def chained(self) -> bool:
        """Whether it can take encoded queries and compose them itself, in one launch."""
        ...

    def begun(self) -> Source:
        """The same for queries that are composed now: whatever time there is for answers counts from here."""
        ...

    def held(self, items: Sequence[str]) -> list[Held | CirError]:
        """Items, asked for together; of each that is not there, or cannot be asked for now, why."""
        ...

    def search(self, terms: QueryTerms, k: int, references: References = NO_REFERENCES) -> Found:
        """The k best of each query; none for references says nothing of any."""
        ...

    def search_chained(self, image: Any, row: Floats | None, text: Any, k: int) -> Found:
        """The k best of one query, see `Chains.topk`."""
        ...


class OneGallery:
    """A gallery as it was at one time.

    Args:
        snapshot: that time.
        path: for messages.
        scorer: over its rows.
        chains: where graphs and scorer share a GPU.
        allow: the rows that may answer, see `Scorer.topk`.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        path: str,
        scorer: Scorer,
        chains: Chains | None,
        allow: npt.NDArray[np.uint8] | None,
    ) -> None:
        self._snapshot, self._path = snapshot, path
        self._scorer, self._chains, self._allow = scorer, chains, allow

    @property
    def size(self) -> int:
        """See `Source`."""
        return self._snapshot.count

    @property
    def chained(self) -> bool:
        """See `Source`."""
        return self._chains is not None

    def begun(self) -> OneGallery:
        """See `Source`."""
        return self

    def held(self, items: Sequence[str]) -> list[Held | CirError]:
        """See `Source`."""
        return [self._held(item) for item in items]

    def _held(self, item: str) -> Held | CirError:
        try:
            return held_in(self._snapshot, row_of(self._snapshot, self._path, item))
        except GalleryError as error:
            return error

    def search(self, terms: QueryTerms, k: int, references: References = NO_REFERENCES) -> Found:
        """See `Source`."""
        with native_call:
            top = self._scorer.topk(terms, k, self._allow)
        return found_in(self._snapshot, top, references)

    def search_chained(self, image: Any, row: Floats | None, text: Any, k: int) -> Found:
        """See `Source`."""
        assert self._chains is not None
        with native_call:
            top = self._chains.topk(image, row, text, k, self._allow)
        return found_in(self._snapshot, top)


def found_in(snapshot: Snapshot, top: TopK, references: References = NO_REFERENCES) -> Found:
    """What a gallery says of the rows that a scorer found."""
    rows = [rows[rows >= 0] for rows in top.rows]
    told = iter(snapshot.items(np.concatenate(rows) if rows else []))
    items = [list(islice(told, len(of_one))) for of_one in rows]
    same = np.zeros(top.rows.shape, np.bool_)
    for query, reference in enumerate(references.rows):
        if reference is not None:
            same[query] = same_rows(snapshot.rows, top.rows[query], reference, references.looser)
    return Found(top, items, same, snapshot.count, snapshot.fingerprint, (snapshot.generation,))


def held_in(snapshot: Snapshot, row: int) -> Held:
    """An item of a gallery by its row."""
    return Held(snapshot.rows.one(row), lambda: snapshot.items([row])[0], snapshot.fingerprint)


def row_of(snapshot: Snapshot, where: str, item: str) -> int:
    """The row of an id.

    Raises:
        GalleryError: there is no such item.
    """
    row = snapshot.row(item) if isinstance(item, str) else None
    if row is None:
        raise GalleryError(f"the gallery {where} holds no item {shown(item)} (any more); expected an id")
    return row
