"""A searcher over shards: a query is composed once, each shard answers its best, the best of those win.

The k best items of all are among the k best of each shard, so the merge is exact. Hits are ordered by score,
then by the shard's place, then by the row in it: as in one gallery that holds the shards' rows one after the
other. What one shard cannot answer, nobody gets a part of: its error is the query's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle import Bundle
from cir_infer.engine import Engine
from cir_infer.errors import CirError, GalleryError, UsageError, shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.filters.filters import Where
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.arguments import checked_count, checked_word
from cir_infer.inputs.texts import Text
from cir_infer.scoring.balance import Balance, balanced, checked_balance
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.asked import Reference, check_reference, paired, read_text
from cir_infer.searching.exclusion import checked_ids
from cir_infer.searching.made_hits import made_hits
from cir_infer.searching.vectors import METRICS, Metric, checked_queries, vector_terms
from cir_infer.shards.layout import ShardedGallery, check_different
from cir_infer.shards.shard import Found, LocalShard, Shard

__all__ = ["ShardedSearcher"]

Place = str | os.PathLike[str]


class ShardedSearcher:
    """Answers queries over several shards as a `Searcher` does over one gallery. Threads may share one.

    Args:
        bundle: see `Searcher`; None to ask vectors only.
        shards: a sharded gallery or its folder; or a list of galleries, paths of such and other `Shard`s.
        device: see `Engine`; not together with an `Engine`.
        scorer: see `cir_infer.scoring.make_scorer`, for galleries of this process.
        threads: CPU threads of a call; None for every core that the process may use.

    Attributes:
        engine: the engine, None without a bundle.
        shards: in order.

    Raises:
        BundleError, DeviceError: see `Engine`.
        GalleryError: a gallery is missing, damaged, of another bundle, not like the others, or there twice.
        UsageError: contradicting arguments.
    """

    def __init__(
        self,
        bundle: Engine | Bundle | Place | None,
        shards: ShardedGallery | Place | Sequence[Gallery | Shard | Place],
        device: str = "auto",
        scorer: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._owned: list[Any] = []
        self._closed = False
        try:
            parts = self._parts(shards)
            self.engine = self._opened(bundle, device, threads)
            self._shape = _common([part for part in parts if isinstance(part, Gallery)])
            self.shards: tuple[Shard, ...] = tuple(
                self._shard(part, scorer, threads) if isinstance(part, Gallery) else part for part in parts
            )
        except BaseException:
            self.close()
            raise

    def _parts(self, shards: Any) -> list[Gallery | Shard]:
        if isinstance(shards, (str, os.PathLike)):
            shards = ShardedGallery(Path(shards), read_only=True)
            self._owned.append(shards)
        if isinstance(shards, ShardedGallery):
            return list(shards.shards)
        if not isinstance(shards, Sequence) or not shards:
            raise UsageError(
                f"shards is {shown(shards)}; expected the folder of a sharded gallery, or a list of galleries"
            )
        parts: list[Gallery | Shard] = []
        for shard in shards:
            if isinstance(shard, (str, os.PathLike)):
                shard = Gallery.open(Path(shard), read_only=True)
                self._owned.append(shard)
            if not isinstance(shard, Gallery) and not hasattr(shard, "search"):
                raise UsageError(f"a shard is {shown(shard)}; expected a Gallery, its path, or a Shard")
            parts.append(shard)
        return parts

    def _opened(self, bundle: Any, device: str, threads: int | None) -> Engine | None:
        if bundle is None or isinstance(bundle, Engine):
            return bundle
        engine = Engine(bundle, device, threads)
        self._owned.append(engine)
        return engine

    def _shard(self, gallery: Gallery, scorer: str, threads: int | None) -> Shard:
        if self.engine is not None:
            gallery.check_engine(self.engine)
        shard = LocalShard(gallery, scorer, threads)
        self._owned.append(shard)
        return shard

    def close(self) -> None:
        """Give back what this searcher opened itself."""
        self._closed = True
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> ShardedSearcher:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()

    # ---- asking

    def query(
        self,
        image: Reference,
        text: Text | None,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        balance: Balance | None = None,
    ) -> Hits:
        """The k items that best match a reference image changed as a text says; see `Searcher.query`.

        Raises:
            CirError: see there; and whatever keeps a shard from answering.
        """
        return next(self.query_batch([image], [text], k, where, exclude, 1, balance))

    def query_batch(
        self,
        images: Iterable[Reference],
        texts: Iterable[Text | None],
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        batch_size: int = 32,
        balance: Balance | None = None,
    ) -> Iterator[Hits]:
        """The answers to many queries, in order; see `Searcher.query_batch`."""
        engine = self._engine()
        k, size, ids = checked_count("k", k), checked_count("batch_size", batch_size), checked_ids(exclude)
        factors = checked_balance(balance, engine.manifest.terms)
        pairs = paired(images, texts)
        return self._answers(engine, pairs, size, k, where, ids, factors)

    def _answers(
        self,
        engine: Engine,
        pairs: Iterator[tuple[Any, Any]],
        size: int,
        k: int,
        where: Where | None,
        exclude: list[str],
        factors: dict[str, float],
    ) -> Iterator[Hits]:
        while batch := list(islice(pairs, size)):
            refined = [pair[0].id if isinstance(pair[0], Hit) else None for pair in batch]
            reads = [read for _, text in batch if (read := read_text(engine, text)) is not None]
            references = self._references(engine, [pair[0] for pair in batch])
            encoded = engine.encode_read(reads) if reads else None
            terms = balanced(engine.compose(references, encoded), factors)
            # A refined Hit is left out of its own answer only, so one more is asked for.
            more = int(any(item is not None for item in refined))
            for at, hits in enumerate(self._merged(terms, k + more, where, exclude)):
                kept = [hit for hit in hits if hit.id != refined[at]][:k]
                unknown = reads[at].unknown if reads else ()
                yield Hits(_ranked(kept), unknown, None, factors)

    def search_vectors(
        self,
        vectors: Any,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        metric: Metric = "cosine",
    ) -> list[Hits]:
        """The k items whose vectors are nearest to each of some; see `VectorSearcher.search_vectors`."""
        k, ids = checked_count("k", k), checked_ids(exclude)
        metric = checked_word("metric", metric, METRICS)
        if self._shape is None:
            raise UsageError(
                "no shard is a gallery of this process, so the width of its vectors is not known"
            )
        answers: list[Hits] = []
        for terms in vector_terms(checked_queries(vectors, self._shape[1]), metric):
            answers += [Hits(hits) for hits in self._merged(terms, k, where, ids)]
        return answers

    # ---- inside

    def _engine(self) -> Engine:
        if self._closed:
            raise UsageError("this searcher is closed; make another")
        if self.engine is None:
            raise UsageError("this searcher has no bundle, so it can be asked vectors only")
        return self.engine

    def _references(self, engine: Engine, references: list[Any]) -> npt.NDArray[np.float32] | None:
        if not engine.needs_reference:
            return None
        for reference in references:
            check_reference(engine, reference)
        images = [reference for reference in references if not isinstance(reference, Hit)]
        encoded = iter(engine.encode_references(images, len(images)) if images else ())
        return np.stack(
            [
                self._row_of(reference.id) if isinstance(reference, Hit) else next(encoded)
                for reference in references
            ]
        )

    def _row_of(self, item: str) -> npt.NDArray[np.float32]:
        for shard in self.shards:
            row = shard.vector(item)
            if row is not None:
                return row
        raise GalleryError(f"no shard holds an item {shown(item)} (any more)")

    def _merged(self, terms: QueryTerms, k: int, where: Where | None, exclude: list[str]) -> list[list[Hit]]:
        """The best of what every shard finds, query by query."""
        if self._closed:
            raise UsageError("this searcher is closed; make another")
        found = [self._found(number, terms, k, where, exclude) for number in range(len(self.shards))]
        if not any(part.size for part in found):
            raise GalleryError("every shard is empty; add images with cir-index or add()")
        return [_best(found, query, k, terms.names) for query in range(terms.queries)]

    def _found(
        self, number: int, terms: QueryTerms, k: int, where: Where | None, exclude: list[str]
    ) -> Found:
        try:
            return self.shards[number].search(terms, k, where, exclude)
        except UsageError:
            raise  # the question's fault, and any shard's
        except CirError as error:
            raise type(error)(f"shard {number} of {len(self.shards)}: {error}") from error


def _best(found: Sequence[Found], query: int, k: int, names: tuple[str, ...]) -> list[Hit]:
    """The k best hits of one query, by score, then the shard's place, then the row."""
    hits = [
        (-hit.score, shard, hit)
        for shard, part in enumerate(found)
        for hit in made_hits(part.items[query], part.top, query, range(len(part.items[query])), names)
    ]
    hits.sort(key=lambda entry: entry[:2])  # stable: a shard's own are in order already
    return _ranked(hit for _, _, hit in hits[:k])


def _ranked(hits: Iterable[Hit]) -> list[Hit]:
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]


def _common(galleries: Sequence[Gallery]) -> tuple[str | None, int, int] | None:
    """Fingerprint, D and M of all galleries, None where there is none.

    Raises:
        GalleryError: they differ, or one is there twice.
    """
    shapes = [(g.fingerprint, g.dimension, g.tokens_per_item) for g in galleries]
    for gallery, shape in zip(galleries, shapes, strict=True):
        if shape != shapes[0]:
            raise GalleryError(
                f"{gallery.path}: its rows are {shape[2]} x {shape[1]} of {shown(shape[0], 80)}, those of "
                f"{galleries[0].path} are {shapes[0][2]} x {shapes[0][1]} of {shown(shapes[0][0], 80)}; "
                "shards have rows of one bundle"
            )
    check_different(galleries)
    return shapes[0] if shapes else None
