"""Measures the gallery: opening, commits, filters, queries beside a compaction, indexing."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.scoring.workload import artemis_terms
from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.indexing.items import Item
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_source
from cir_infer.inputs.preprocess import preprocess
from cir_infer.scoring import make_scorer

__all__ = ["measure_indexing", "measure_store"]

COMMIT = 50_000
WHERES = ("category = dress", "price < 50", "brand = brand17", "category = dress and price < 500")


def measure_store(
    folder: Path, rows: int, dimension: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Build a gallery of random rows with five fields of metadata, and time what is done with it.

    Args:
        folder: a scratch folder.
        rows: how many items.
        dimension: D.
        rounds: how often opening, filtering and querying are timed.
        tell: called with what is being done.
    """
    path = folder / "store.gallery"
    shutil.rmtree(path, ignore_errors=True)
    tell("adding")
    started = time.perf_counter()
    with Gallery.create(path, dimension=dimension) as gallery:
        for ids, vectors, metadata in _batches(rows, dimension):
            gallery.add_vectors(ids=ids, vectors=vectors, metadata=metadata)
    added = time.perf_counter() - started
    with Gallery.open(path) as gallery:
        tell("compacting")
        merging = _timed(gallery.compact)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    tell("opening")
    opening = _opening(path, rounds)
    with Gallery.open(path) as gallery:
        removed = np.random.default_rng(1).choice(rows, rows // 10, replace=False)
        tell("removing a tenth")
        removing = _timed(lambda: gallery.remove([f"sku-{number:08d}" for number in removed]))
    opening_after = _opening(path, rounds)
    with Gallery.open(path) as gallery:
        tell("filtering")
        filters = {where: _filtering(gallery, where, rounds) for where in WHERES}
        tell("querying beside a compaction")
        beside = _beside_compaction(gallery, dimension, rounds)
        tell("verifying")
        verifying = _timed(gallery.verify)
    return {
        "rows": rows,
        "dimension": dimension,
        "bytes": size,
        "open_ms": opening,
        "open_ms_a_tenth_removed": opening_after,
        "add_rows_per_second": rows / added,
        "merge_segments_seconds": merging,
        "remove_rows_per_second": len(removed) / removing,
        "verify_seconds": verifying,
        "filters": filters,
        "compaction": beside,
    }


def _batches(rows: int, dimension: int) -> Iterator[tuple[list[str], Any, list[dict[str, Any]]]]:
    vectors = np.random.default_rng(0).normal(size=(min(rows, COMMIT), dimension)).astype(np.float16)
    for start in range(0, rows, COMMIT):
        numbers = range(start, min(start + COMMIT, rows))
        metadata = [
            {
                "category": ("dress", "shirt", "toptee")[n % 3],
                "price": float(n % 997),
                "brand": f"brand{n % 211}",
                "tags": ["new", "sale"][: n % 3],
                "in_stock": n % 7 > 0,
            }
            for n in numbers
        ]
        yield [f"sku-{n:08d}" for n in numbers], vectors[: len(numbers)], metadata


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _spread(seconds: list[float]) -> dict[str, float]:
    """Median and extremes, in milliseconds."""
    return {
        "median": statistics.median(seconds) * 1e3,
        "min": min(seconds) * 1e3,
        "max": max(seconds) * 1e3,
    }


def _opening(path: Path, rounds: int) -> dict[str, float]:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        gallery = Gallery.open(path, read_only=True)
        snapshot = gallery.snapshot()
        assert len(snapshot) and snapshot.rows.count
        seconds.append(time.perf_counter() - started)
        gallery.close()
    return _spread(seconds)


def _filtering(gallery: Gallery, where: str, rounds: int) -> dict[str, Any]:
    first, again = [], []
    for _ in range(rounds):
        with Gallery.open(gallery.path, read_only=True) as fresh:
            snapshot = fresh.snapshot()
            first.append(_timed(lambda snapshot=snapshot: snapshot.where(where)))  # type: ignore[misc]
            again.append(_timed(lambda snapshot=snapshot: snapshot.where(where)))  # type: ignore[misc]
    matching = gallery.snapshot().matching(where)
    return {"matching": matching, "first_ms": _spread(first), "cached_ms": _spread(again)}


def _beside_compaction(gallery: Gallery, dimension: int, rounds: int) -> dict[str, Any]:
    """Latency of exact queries alone, beside a compaction, and alone again."""
    terms = artemis_terms(1, dimension, 2)

    def query() -> float:
        snapshot = gallery.snapshot()
        scorer = make_scorer(snapshot.rows)
        started = time.perf_counter()
        scorer.topk(terms, 10, snapshot.live)
        return time.perf_counter() - started

    query()
    before = [query() for _ in range(rounds)]
    compaction: list[float] = []
    thread = threading.Thread(target=lambda: compaction.append(_timed(gallery.compact)))
    thread.start()
    beside = [query()]
    while thread.is_alive():
        beside.append(query())
    thread.join()
    query()
    after = [query() for _ in range(rounds)]
    alone = statistics.median(before + after)
    return {
        "seconds": compaction[0],
        "queries_beside": len(beside),
        "query_alone_ms": _spread(before + after),
        "query_beside_ms": _spread(beside),
        "slow_down": statistics.median(beside) / alone,
    }


def measure_indexing(
    folder: Path,
    engine: Engine,
    images: str,
    rounds: int,
    workers: int,
    batch_size: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Rate of indexing over the encoder's own rate on the same images, prepared in memory; in turns.

    Args:
        folder: a scratch folder.
        engine: the encoder.
        images: a source, as `cir-index` takes it.
        rounds: how often each is timed.
        workers: decoding processes.
        batch_size: images in one run of the encoder.
        tell: called with what is being done.
    """
    source = open_source(images)
    items = [item for item in source.items() if isinstance(item, Item)]
    tell(f"preparing {len(items)} images")
    prepared = [preprocess(item.location.read(), engine.manifest.image) for item in items]
    batches = [np.stack(prepared[i : i + batch_size]) for i in range(0, len(prepared), batch_size)]
    engine.encode_prepared(batches[0])
    own, whole, ratios = [], [], []
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")

        def encode() -> None:
            for batch in batches:
                engine.encode_prepared(batch)

        path = folder / "index.gallery"
        shutil.rmtree(path, ignore_errors=True)
        # The encoder alone before and after, so that a drift of the machine cancels.
        first = _timed(encode)
        with Gallery.create(path, engine) as gallery:
            report = index(gallery, engine, [source], workers=workers, batch_size=batch_size)
        second = _timed(encode)
        assert report.added == len(items), report.broken
        own.append(len(items) / ((first + second) / 2))
        whole.append(report.rate)
        ratios.append(whole[-1] / own[-1])
    return {
        "images": len(items),
        "workers": workers,
        "batch_size": batch_size,
        "encoder_images_per_second": statistics.median(own),
        "index_images_per_second": statistics.median(whole),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
