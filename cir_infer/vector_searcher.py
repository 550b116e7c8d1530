"""A searcher without a model: vectors in, ranked hits out. A `Searcher` has the same beside its queries."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery import Gallery, Snapshot
from cir_infer.gallery.filters.filters import Where
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.arguments import checked_count, checked_word, plain_path
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.ending import native_call
from cir_infer.processes.fork import PerProcess
from cir_infer.processes.threads import Threads
from cir_infer.processes.turns import Turn
from cir_infer.processes.users import Users
from cir_infer.scoring import SCORERS, make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.validation import check_threads
from cir_infer.searching.exclusion import checked_ids, without
from cir_infer.searching.found import found_in, row_of
from cir_infer.searching.vectors import METRICS, Metric, checked_queries, hits_of, vector_terms

if TYPE_CHECKING:
    from cir_infer.engine import Engine
    from cir_infer.runtime.chains import Chains

__all__ = ["VectorSearcher"]

S = TypeVar("S", bound="VectorSearcher")


@dataclass
class _Here:
    """What a searcher has in one process."""

    turn: Turn = field(default_factory=Turn)
    beside: Threads = field(default_factory=lambda: Threads(available_cpus() + 4))
    current: tuple[Snapshot, Scorer, Chains | None] | None = None


class VectorSearcher:
    """Answers vectors with the items whose vectors are nearest, exactly, whatever model made both.

    Threads may share one, and a forked child may use it on the CPU. Close it, or use it in a `with` block.
    A copy, or what comes out of pickle, opens the gallery again by its path.

    Args:
        gallery: a gallery or its path.
        scorer: see `cir_infer.scoring.make_scorer`.
        threads: CPU threads of a call; None for every core that the process may use.
        fingerprint: what the gallery's rows must be of: the name that `Gallery.create` was given. None asks
            a gallery of any model.

    Attributes:
        gallery: the gallery. Items that are added or removed show from the next query on.

    Raises:
        GalleryError: the gallery is missing or damaged, or of another model.
        UsageError: an argument is not what is said above.
    """

    def __init__(
        self,
        gallery: Gallery | str | os.PathLike[str],
        scorer: str = "auto",
        threads: int | None = None,
        *,
        fingerprint: str | None = None,
    ) -> None:
        check_threads(threads)
        self._begin(scorer)
        self._threads, self._fingerprint = threads, fingerprint
        try:
            self._use_gallery(gallery)
            if fingerprint is not None:
                self.gallery.check_fingerprint(fingerprint)
        except BaseException:
            self.close()
            raise

    def _begin(self, scorer: str) -> None:
        self._backend: str = checked_word("scorer", scorer, SCORERS)
        self._owned: list[Engine | Gallery] = []
        self._here: PerProcess[_Here] = PerProcess(_Here)
        self._users = Users(self._give_back, self._refusal)

    def _use_gallery(self, gallery: Gallery | str | os.PathLike[str]) -> None:
        if not isinstance(gallery, (Gallery, str, os.PathLike)):
            raise UsageError(f"gallery is {shown(gallery)}; expected a Gallery or its path")
        if isinstance(gallery, Gallery):
            self.gallery = gallery
        else:
            self.gallery = Gallery.open(Path(plain_path(gallery)), read_only=True)
            self._owned.append(self.gallery)
        self._place = str(Path(self.gallery.path).absolute())

    # ---- its life

    def close(self) -> None:
        """Give back what this searcher holds; close what it opened itself.

        Calls that are under way are answered first, by the threads that they are in.
        """
        self._users.end()

    def _give_back(self) -> None:
        here = self._here.drop()
        if here is not None:
            here.beside.close()
        with suppress(IndexError):
            while True:
                self._owned.pop().close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._place, self._backend, self._threads, self._fingerprint)

    def __repr__(self) -> str:
        return f"<VectorSearcher over {self.gallery.path}{', closed' if self._users.ended else ''}>"

    # ---- asking

    def search_vectors(
        self,
        vectors: Any,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        metric: Metric = "cosine",
    ) -> list[Hits]:
        """The k items whose vectors are nearest to each of some vectors, exactly.

        Args:
            vectors: (Q, D) finite numbers, none all zero, of the model that made the rows of the gallery; or
                (Q, T, D) for T vectors a query, whose terms add up: over items of several vectors that is the
                late interaction of ColBERT, the sum over the query's vectors of the largest over the item's.
            k: how many hits for each; fewer come back where fewer items qualify.
            where: a filter on metadata, see docs/gallery.md. One that leaves nothing gives no hits.
            exclude: ids that must not be answered; unknown ids are ignored.
            metric: "cosine" divides the product by both lengths; "dot" is the product alone, in which
                longer rows come first. They rank alike where all rows have the same length.

        Returns:
            One `Hits` for each query. The term of a hit is named `cosine` or `dot_product`, with `_0`, `_1`
            and so on where a query has several vectors; `Hit.tokens` says which of an item's gave it.

        Raises:
            GalleryError: the gallery is empty.
            UsageError: an argument is not what is said above, or the searcher is closed.
            DeviceError: the device failed.
        """
        k, ids = checked_count("k", k), checked_ids(exclude)
        return self._users.run(self._nearest, vectors, k, where, ids, checked_word("metric", metric, METRICS))

    def _nearest(
        self, vectors: Any, k: int, where: Where | None, ids: list[str], metric: Metric
    ) -> list[Hits]:
        snapshot = self._snapshot()
        queries = checked_queries(vectors, snapshot.dimension)
        allow = without(snapshot, snapshot.where(where), ids)
        scorer = self._scorer(snapshot)[0]
        answers: list[Hits] = []
        for asked in vector_terms(queries, metric):
            with native_call:
                top = scorer.topk(asked.terms, min(k, snapshot.count), allow)
            answers += hits_of(found_in(snapshot, top), asked)
        return answers

    def search_terms(
        self, terms: QueryTerms, k: int, where: Where | None = None, exclude: Iterable[str] | None = None
    ) -> tuple[Snapshot, TopK]:
        """The k best rows of queries that are composed already, and the snapshot whose row numbers those are.

        An empty gallery has none.

        Raises:
            ScoringError: the terms do not fit the rows.
            UsageError, DeviceError: see `search_vectors`.
        """
        return self._users.run(self._best, terms, checked_count("k", k), where, checked_ids(exclude))

    def _best(self, terms: QueryTerms, k: int, where: Where | None, ids: list[str]) -> tuple[Snapshot, TopK]:
        snapshot = self.gallery.snapshot()
        allow = without(snapshot, snapshot.where(where), ids)
        scorer = self._scorer(snapshot)[0]
        with native_call:
            return snapshot, scorer.topk(terms, max(1, min(k, snapshot.count)), allow)

    @property
    def scorer(self) -> Scorer:
        """What scores the gallery as it is now."""
        return self._users.run(lambda: self._scorer(self.gallery.snapshot())[0])

    def item(self, id: str) -> Hit:
        """An item of the gallery as a Hit, to refine it without a query before.

        Raises:
            GalleryError: there is no such item.
            UsageError: the searcher is closed.
        """
        return self._users.run(self._item, id)

    def _item(self, id: str) -> Hit:
        snapshot = self.gallery.snapshot()
        item = snapshot.items([row_of(snapshot, str(self.gallery.path), id)])[0]
        return Hit(item.id, metadata=item.metadata, source=item.source)

    def describe(self) -> dict[str, Any]:
        """Gallery and scorer, as plain values that JSON can hold."""
        return self._users.run(self._described)

    def _described(self) -> dict[str, Any]:
        snapshot = self.gallery.snapshot()
        return {
            "gallery": str(self.gallery.path),
            "rows": snapshot.count,
            "row_type": str(snapshot.rows.dtype),
            "scorer": self._scorer(snapshot)[0].name,
        }

    # ---- answering

    def _snapshot(self) -> Snapshot:
        """The gallery as it is now, with something in it."""
        snapshot = self.gallery.snapshot()
        if snapshot.count == 0:
            raise GalleryError(
                f"the gallery {self.gallery.path} is empty; add images with cir-index or add(), or vectors "
                "with add_vectors()"
            )
        return snapshot

    def _refusal(self) -> UsageError:
        return UsageError(f"this searcher over {self.gallery.path} is closed; make another")

    def _scorer(self, snapshot: Snapshot) -> tuple[Scorer, Chains | None]:
        here = self._here.get()
        current = here.current
        if current is None or current[0] is not snapshot:
            current = here.turn.take(self._renewed, here, snapshot)
        return current[1:]

    def _renewed(self, here: _Here, snapshot: Snapshot) -> tuple[Snapshot, Scorer, Chains | None]:
        if here.current is None or here.current[0] is not snapshot:
            # The old scorer is let go first: a GPU may not hold two galleries.
            here.current = None
            here.current = (snapshot, *self._new_scorer(snapshot.rows))
        return here.current

    def _new_scorer(self, rows: Rows) -> tuple[Scorer, Chains | None]:
        return make_scorer(rows, self._backend, self._threads), None


def _reopened(place: str, scorer: str, threads: int | None, fingerprint: str | None) -> VectorSearcher:
    """What a searcher becomes in pickle: the same gallery, opened again."""
    return VectorSearcher(place, scorer, threads, fingerprint=fingerprint)
