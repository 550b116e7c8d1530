"""Times queries over shards of this process: all of it, and what each shard took for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_bench.timing import summarise
from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.processes.cpus import available_cpus
from cir_infer.searching.found import Found
from cir_infer.shards import LocalShard, ShardedSearcher
from cir_infer.vector_searcher import VectorSearcher

__all__ = ["Measured", "measure"]

Milliseconds = npt.NDArray[np.float64]
_COMMIT = 50_000
_WARM = 5


class Measured:
    """What was measured of one number of shards.

    Attributes:
        shards: how many.
        total: of each query, ms.
        own: of each query and shard, ms (queries, shards).
    """

    def __init__(self, shards: int, total: Milliseconds, own: Milliseconds) -> None:
        self.shards, self.total, self.own = shards, total, own

    @property
    def coordination(self) -> Milliseconds:
        """What each query took beyond its slowest shard, ms."""
        beyond: Milliseconds = self.total - self.own.max(axis=1)
        return beyond

    def told(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "shards": self.shards,
            "total": summarise(self.total),
            "slowest_shard": summarise(self.own.max(axis=1)),
            "coordination": summarise(self.coordination),
        }


class _Timed(LocalShard):
    """A shard that notes how long its last search took."""

    took = 0.0

    def search(self, *asked: Any, **named: Any) -> Found:
        begun = time.perf_counter()
        found = super().search(*asked, **named)
        self.took = time.perf_counter() - begun
        return found


def measure(
    folder: Path,
    rows: int,
    dimension: int,
    counts: Sequence[int],
    queries: int,
    k: int,
    tell: Callable[[str], None],
) -> tuple[Measured, list[Measured]]:
    """Time one gallery of random rows, and the same rows over so many shards; the answers must be equal.

    Args:
        folder: a scratch folder.
        rows: of all shards together, float16.
        dimension: D.
        counts: of shards.
        queries: that are timed.
        k: hits of each.
        tell: called with what is being done.

    Raises:
        CirError: an answer of shards is another than that of the one gallery.
    """
    asked = np.random.default_rng(1).standard_normal((queries + _WARM, dimension))
    tell("one gallery")
    with _made(folder / "one", np.arange(rows), dimension) as gallery, VectorSearcher(gallery) as searcher:
        total, answers, _ = _timed(searcher, asked, k, ())
    one = Measured(1, total, total[:, None])
    found = []
    for count in counts:
        tell(f"{count} shards")
        parts = np.array_split(np.arange(rows), count)
        galleries = [_made(folder / f"{count}-{n}", part, dimension) for n, part in enumerate(parts)]
        threads = max(1, available_cpus() // count)
        shards = [_Timed(gallery, threads=threads) for gallery in galleries]
        with ShardedSearcher(None, shards) as sharded:
            total, told, own = _timed(sharded, asked, k, shards)
        for shard, gallery in zip(shards, galleries, strict=True):
            shard.close()
            gallery.close()
        if told != answers:
            raise CirError(f"{count} shards answered otherwise than one gallery, so nothing is timed")
        found.append(Measured(count, total, own))
    return one, found


def _made(path: Path, numbers: npt.NDArray[np.int64], dimension: int) -> Gallery:
    gallery = Gallery.create(path, dimension=dimension)
    for start in range(0, len(numbers), _COMMIT):
        part = numbers[start : start + _COMMIT]
        vectors = np.stack(
            [np.random.default_rng([7, int(n)]).standard_normal(dimension, np.float32) for n in part]
        )
        gallery.add_vectors(ids=[f"sku-{n:08d}" for n in part], vectors=vectors)
    return gallery


def _timed(
    searcher: VectorSearcher | ShardedSearcher,
    asked: npt.NDArray[np.float64],
    k: int,
    shards: Sequence[_Timed],
) -> tuple[Milliseconds, list[list[tuple[str, float]]], Milliseconds]:
    """Times of queries, their answers, and the times of each shard."""
    took, answers, own = [], [], []
    for query in asked:
        begun = time.perf_counter()
        (hits,) = searcher.search_vectors(query[None], k)
        took.append(1000 * (time.perf_counter() - begun))
        answers.append([(hit.id, hit.score) for hit in hits])
        own.append([1000 * shard.took for shard in shards])
    return np.array(took[_WARM:]), answers, np.array(own[_WARM:])
