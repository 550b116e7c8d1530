"""The seam between one query and the parts of a gallery that answer it, in this process or beyond."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.gallery import Gallery
from cir_infer.gallery.filters.filters import Where
from cir_infer.gallery.snapshot import Item
from cir_infer.scoring.contract import QueryTerms, TopK
from cir_infer.vector_searcher import VectorSearcher

__all__ = ["Found", "LocalShard", "Shard"]


class Found(NamedTuple):
    """What one shard answers: its own best, enough for the best of all.

    Attributes:
        top: the k best rows of each query, by the shard's own row numbers.
        items: what the shard says of them, for each query best first; those that are not there are missing.
        generation: the commit that answered.
        size: how many items the shard has.
    """

    top: TopK
    items: list[list[Item]]
    generation: int
    size: int


class Shard(Protocol):
    """A part of a gallery that can be asked. A few KB go to it and come back, whatever its size."""

    def search(self, terms: QueryTerms, k: int, where: Where | None, exclude: Sequence[str]) -> Found:
        """The k best items of each query, exactly.

        Args:
            terms: Q queries, composed once for all shards.
            k: at least 1.
            where: a filter on metadata.
            exclude: ids that must not be answered.

        Raises:
            CirError: it cannot answer; then there is no answer at all.
        """
        ...

    def vector(self, item: str) -> npt.NDArray[np.float32] | None:
        """The row of an id, None where the shard does not hold it."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class LocalShard:
    """A gallery in this process.

    Args:
        gallery: it, or its path.
        scorer: see `cir_infer.scoring.make_scorer`.
        threads: CPU threads of a call.
    """

    def __init__(
        self, gallery: Gallery | str | os.PathLike[str], scorer: str = "auto", threads: int | None = None
    ) -> None:
        self._searcher = VectorSearcher(gallery, scorer, threads)

    def search(self, terms: QueryTerms, k: int, where: Where | None, exclude: Sequence[str]) -> Found:
        """See `Shard.search`."""
        snapshot, top = self._searcher.search_terms(terms, k, where, exclude)
        items = [snapshot.items(rows[rows >= 0]) for rows in top.rows]
        return Found(top, items, snapshot.generation, snapshot.count)

    def vector(self, item: str) -> npt.NDArray[np.float32] | None:
        """See `Shard.vector`."""
        snapshot = self._searcher.gallery.snapshot()
        row = snapshot.row(item)
        return None if row is None else snapshot.vector(row)

    def close(self) -> None:
        """See `Shard.close`."""
        self._searcher.close()
