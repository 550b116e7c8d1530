"""A searcher under load: batches of queries, and requests that come whether or not it keeps up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from cir_bench.latency.workload import Workload
from cir_bench.timing import arrivals_at, open_loop, repeat, summarise
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.texts import Text
from cir_infer.searcher import Searcher

__all__ = ["load_curve", "time_batches"]

LOADS = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Open-loop rates to visit, as shares of what one query after the other reaches."""


def time_batches(
    searcher: Searcher, workload: Workload, k: int, sizes: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Batches of queries through `Searcher.query_batch`: summary a batch size, throughput included.

    Args:
        searcher: opened.
        workload: what to ask; queries take turns.
        k: hits a query.
        sizes: queries a batch.
        seconds: how long to go on, for each size.
    """
    results = []
    for size in sizes:
        asked = _questions(searcher, workload)

        def answer(asked: Iterator[tuple[ImageLike | None, Text | None]] = asked, size: int = size) -> None:
            images, texts = zip(*itertools.islice(asked, size), strict=True)
            for _ in searcher.query_batch(images, texts, k, batch_size=size):
                pass

        taken = repeat(answer, seconds=seconds, at_least=5, warm_up=1)
        summary = summarise(taken)
        results.append(
            {
                "size": size,
                "batch": summary,
                "per_query_ms": summary["p50_ms"] / size,
                "throughput_per_s": 1e3 * size / summary["p50_ms"],
            }
        )
    return results


def load_curve(
    searcher: Searcher,
    workload: Workload,
    k: int,
    rates: Sequence[float],
    seconds: float,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Latency from the due moment at each rate of independent requests (Poisson arrivals).

    Args:
        searcher: opened.
        workload: what to ask; queries take turns.
        k: hits a query.
        rates: requests a second to visit.
        seconds: how long to go on, for each rate.
        workers: threads that answer.

    Returns:
        A dictionary a rate; `kept_up` is False where the queue grew all along, and then the latencies
        say how long the run was, not how fast the machine is.
    """
    asked = _questions(searcher, workload)

    def answer() -> None:
        image, text = next(asked)
        searcher.query(image, text, k)

    for _ in range(3):
        answer()
    points = []
    for number, rate in enumerate(rates):
        arrivals = arrivals_at(rate, seconds, seed=number)
        run = open_loop(answer, arrivals, workers=workers)
        points.append(
            {
                "rate_per_s": rate,
                "offered_per_s": len(arrivals) / float(arrivals[-1]),
                "throughput_per_s": run.throughput,
                "latency": summarise(run.latency_ms),
                "service": summarise(run.service_ms),
                "kept_up": run.kept_up,
            }
        )
    return points


class _Locked:
    """An endless turn of questions that threads may share."""

    def __init__(self, items: Sequence[tuple[ImageLike | None, Text | None]]) -> None:
        self._items = items
        self._numbers = itertools.count()

    def __iter__(self) -> _Locked:
        return self

    def __next__(self) -> tuple[ImageLike | None, Text | None]:
        # next() of an itertools.count is one step of the interpreter.
        return self._items[next(self._numbers) % len(self._items)]


def _questions(searcher: Searcher, workload: Workload) -> Iterator[tuple[ImageLike | None, Text | None]]:
    """The workload's queries in turn, without what the system does not read."""
    engine = searcher.engine
    return _Locked(
        [
            (image if engine.needs_reference else None, text if engine.needs_text else None)
            for image, text in zip(workload.images, workload.texts, strict=True)
        ]
    )
