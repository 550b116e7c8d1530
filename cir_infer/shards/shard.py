"""The seam between one query and the parts of a gallery that answer it, in this process or beyond."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cir_infer.gallery import Gallery
from cir_infer.gallery.filters.filters import Where
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import NO_REFERENCES, Found, Held, References, found_in, held_in
from cir_infer.vector_searcher import VectorSearcher

__all__ = ["About", "LocalShard", "Shard"]


class About(NamedTuple):
    """What a shard is.

    Attributes:
        place: where it is, for people.
        identity: of its gallery.
        fingerprint: of the bundle that made its rows, None where nobody said.
        dimension: D.
        tokens_per_item: M.
        size: how many items it has.
        origin: the identity of the gallery that it is a backup of, None where it is none.
        strayed: whether it was changed since, and is a replica of that no more.
        written_by: the identities of the galleries that wrote its rows, its own perhaps among them: what a
            backup of a backup comes from in the end.
    """

    place: str
    identity: str
    fingerprint: str | None
    dimension: int
    tokens_per_item: int
    size: int
    origin: str | None = None
    strayed: bool = False
    written_by: frozenset[str] = frozenset()


class Shard(Protocol):
    """A part of a gallery that can be asked. A few KB go to it and come back, whatever its size.

    Every call may get a `timeout`, in seconds: a shard elsewhere gives up after it, one in this process
    computes to the end, and nobody waits for it. A shard that cannot be reached, or not now, raises a
    `ShardError`: it is asked again as long as there is time. Other errors are not tried again.
    """

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    def about(self, timeout: float | None = None) -> About:
        """What it is.

        Raises:
            CirError: it cannot say.
        """
        ...

    def search(
        self,
        terms: QueryTerms,
        k: int,
        where: Where | None,
        exclude: Sequence[str],
        references: References = NO_REFERENCES,
        timeout: float | None = None,
    ) -> Found:
        """The k best items of each query, exactly.

        Args:
            terms: Q queries, composed once for all shards.
            k: at least 1.
            where: a filter on metadata.
            exclude: ids that must not be answered.
            references: of each query, see `References`.
            timeout: see above.

        Raises:
            CirError: it cannot answer.
        """
        ...

    def held(self, items: Sequence[str], timeout: float | None = None) -> list[Held | None]:
        """Items, None for each that the shard does not hold.

        Raises:
            CirError: it cannot say.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class LocalShard:
    """A gallery in this process.

    Args:
        gallery: it, its path, or a searcher over it.
        scorer: see `cir_infer.scoring.make_scorer`; not together with a searcher.
        threads: CPU threads of a call; likewise.
    """

    def __init__(
        self,
        gallery: Gallery | VectorSearcher | str | os.PathLike[str],
        scorer: str = "auto",
        threads: int | None = None,
    ) -> None:
        if isinstance(gallery, VectorSearcher):
            self._searcher = gallery
        else:
            self._searcher = VectorSearcher(gallery, scorer, threads)

    @property
    def place(self) -> str:
        """See `Shard.place`."""
        return str(self._searcher.gallery.path)

    @property
    def size(self) -> int:
        """How many items it has."""
        return len(self._searcher.gallery)

    def about(self, timeout: float | None = None) -> About:  # noqa: ARG002
        """See `Shard.about`."""
        gallery = self._searcher.gallery
        snapshot = gallery.snapshot()
        return About(
            self.place,
            gallery.uuid or os.path.realpath(gallery.path),  # format 1 has no identity
            snapshot.fingerprint,
            snapshot.dimension,
            snapshot.tokens_per_item,
            snapshot.count,
            gallery.origin,
            gallery.strayed,
            snapshot.written_by,
        )

    def search(
        self,
        terms: QueryTerms,
        k: int,
        where: Where | None,
        exclude: Sequence[str],
        references: References = NO_REFERENCES,
        timeout: float | None = None,  # noqa: ARG002
    ) -> Found:
        """See `Shard.search`."""
        snapshot, top = self._searcher.search_terms(terms, k, where, exclude)
        return found_in(snapshot, top, references)

    def held(self, items: Sequence[str], timeout: float | None = None) -> list[Held | None]:  # noqa: ARG002
        """See `Shard.held`."""
        snapshot = self._searcher.gallery.snapshot()
        rows = [snapshot.row(item) for item in items]
        return [None if row is None else held_in(snapshot, row) for row in rows]

    def close(self) -> None:
        """See `Shard.close`."""
        self._searcher.close()
