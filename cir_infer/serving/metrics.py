"""What a service counts, for Prometheus. With several workers they count together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one process.

    With $PROMETHEUS_MULTIPROC_DIR set before `prometheus_client` is imported, values lie in files there,
    and `text` adds up those of all workers.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._known: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._refusals: dict[str, Any] = {}
        self._stages: dict[str, Any] = {}
        self._levels: dict[Any, float] = {}
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "cir_requests_total", "Requests, by route and status.", ["route", "method", "status"], **own
        )
        self.seconds = Histogram(
            "cir_request_seconds", "From a request's head to its answer.", ["route"], buckets=_SECONDS, **own
        )
        self.stages = Histogram(
            "cir_stage_seconds", "Time of a query, by stage.", ["stage"], buckets=_SECONDS, **own
        )
        self.batches = Histogram(
            "cir_batch_queries", "Queries that were computed together.", buckets=_BATCHES, **own
        )
        self.refusals = Counter("cir_refusals_total", "Requests refused, by reason.", ["reason"], **own)
        self.cancelled = Counter(
            "cir_cancelled_total", "Queries dropped unanswered, by reason.", ["reason"], **own
        )
        self.queue = Gauge(
            "cir_queue_queries", "Queries in work or waiting.", multiprocess_mode="livesum", **own
        )
        self.open = Gauge("cir_open_requests", "Requests in work.", multiprocess_mode="livesum", **own)
        self.rows = Gauge("cir_gallery_rows", "Items in the gallery.", multiprocess_mode="livemax", **own)
        self.generation = Gauge(
            "cir_gallery_generation", "The gallery's commit.", multiprocess_mode="livemax", **own
        )
        self.reloads = Counter(
            "cir_bundle_reloads_total", "Bundles opened again, by outcome.", ["outcome"], **own
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer. Finding a counter by its labels costs more than counting, so it is kept."""
        known = self._known.get((route, method, status))
        if known is None:
            known = self.requests.labels(route, method, str(status)), self.seconds.labels(route)
            self._known[route, method, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def level(self, gauge: Any, value: float) -> None:
        """Set a gauge, in the event loop's next turn: of what several requests set in this one, the last."""
        if not self._levels:
            asyncio.get_running_loop().call_soon(self._set_levels)
        self._levels[gauge] = value

    def _set_levels(self) -> None:
        for gauge, value in self._levels.items():
            gauge.set(value)
        self._levels.clear()

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        known = self._refusals.get(reason)
        if known is None:
            known = self._refusals[reason] = self.refusals.labels(reason)
        known.inc()

    def stage(self, name: str, seconds: float) -> None:
        """Count the time of a stage."""
        known = self._stages.get(name)
        if known is None:
            known = self._stages[name] = self.stages.labels(name)
        known.observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """The metrics as Prometheus reads them, and their media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = self.registry
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder is not None:
            registry = CollectorRegistry()
            registry.register(_OfAllWorkers(Path(folder)))
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _OfAllWorkers:
    """The sums of what every worker wrote into a folder.

    `MultiProcessCollector` fails at a file in which nothing is yet: that of a worker that just begins, or
    that was killed as it began one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Any]:
        from prometheus_client import multiprocess

        untyped: Any = multiprocess
        merged: Iterable[Any] = untyped.MultiProcessCollector.merge(
            [str(file) for file in self._folder.glob("*.db") if _size_of(file)]
        )
        return merged


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # of a worker that ended
        return 0
