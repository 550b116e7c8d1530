"""Queries that wait at the same time are computed together. None waits for others to come."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cir_infer.errors import CirError
from cir_infer.hits import Hits
from cir_infer.serving.background import Result, deliver, deliver_all
from cir_infer.serving.metrics import Metrics
from cir_infer.serving.opened import Opened

__all__ = ["Answer", "Batcher", "Query", "Wanted"]

_log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """What is wanted of a query; queries that want the same over one gallery are scored together.

    Attributes:
        k: how many hits.
        where: the filter, as `Searcher.query` takes it.
        exclude: ids.
        exclude_reference: see `Searcher.query`.
        balance: factors of terms.
    """

    k: int
    where: Any = None
    exclude: tuple[str, ...] = ()
    exclude_reference: bool = False
    balance: dict[str, float] | None = None

    def key(self) -> Hashable:
        """Equal for queries that want the same."""
        return json.dumps(self, sort_keys=True)


class Answer(NamedTuple):
    """The answer to a query.

    Attributes:
        hits: the hits.
        waited: seconds until its computation began.
        searched: seconds of its computation, with those beside it.
    """

    hits: Hits
    waited: float
    searched: float


@dataclass(eq=False)
class Query:
    """A query on its way.

    Attributes:
        opened: the searcher that answers it.
        reference: a prepared image, a Hit, or None.
        text: see `Searcher.query`.
        wanted: what is wanted.
        deadline: on `time.monotonic`; later it is dropped.
    """

    opened: Opened
    reference: Any
    text: Any
    wanted: Wanted
    deadline: float
    loop: asyncio.AbstractEventLoop = field(init=False)
    future: asyncio.Future[Answer] = field(init=False)
    asked: float = field(init=False)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future = self.loop.create_future()
        self.asked = time.monotonic()

    def fail(self, error: BaseException) -> None:
        """End it without an answer."""
        deliver(self.loop, self.future, None, error)


class Batcher:
    """A thread that computes what waits.

    Args:
        most: queries that are computed together at most.
        metrics: counts batches.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._metrics = most, metrics
        self._waiting: deque[Query] = deque()
        self._there_is = threading.Condition()
        self._closed = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="cir-serve-queries", daemon=True)
        self._thread.start()

    @property
    def seconds_a_query(self) -> float:
        """What a query took lately, in seconds: of a batch's time its share. 0 before the first."""
        return self._seconds

    async def answer(self, query: Query) -> Answer:
        """The answer to a query. Cancelled, it is dropped unless its computation has begun.

        Raises:
            CirError: see `Searcher.query`.
            TimeoutError: its deadline passed before its turn came.
        """
        with self._there_is:
            if self._closed:
                raise RuntimeError("the service is ending")
            self._waiting.append(query)
            self._there_is.notify()
        return await query.future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._there_is:
            self._closed = True
            self._there_is.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            for group in _alike(self._alive(batch)):
                self._answer(group)

    def _next(self) -> list[Query]:
        """What waits, at most `most`; waits only for a first one. Empty at the end."""
        with self._there_is:
            while not self._waiting and not self._closed:
                self._there_is.wait()
            return [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]

    def _alive(self, batch: list[Query]) -> Iterable[Query]:
        now = time.monotonic()
        for query in batch:
            if query.future.done():
                self._metrics.cancelled.labels("disconnected").inc()
            elif query.deadline <= now:
                self._metrics.cancelled.labels("deadline").inc()
                query.fail(TimeoutError())
            else:
                yield query

    def _answer(self, group: list[Query]) -> None:
        first, begun = group[0], time.monotonic()
        wanted = first.wanted
        try:
            answers = list(
                first.opened.searcher.query_batch(
                    [query.reference for query in group],
                    [query.text for query in group],
                    k=wanted.k,
                    where=wanted.where,
                    exclude=wanted.exclude,
                    exclude_reference=wanted.exclude_reference,
                    balance=wanted.balance,
                    batch_size=len(group),
                    errors="return",
                )
            )
        except Exception as error:
            if not isinstance(error, CirError):
                _log.exception("a batch of %d queries failed", len(group))
            for query in group:
                query.fail(error)
            return
        took = time.monotonic() - begun
        self._seconds += (1 - 0.95 ** len(group)) * (took / len(group) - self._seconds)
        self._metrics.batches.observe(len(group))
        told: dict[asyncio.AbstractEventLoop, list[Result]] = {}
        for query, answer in zip(group, answers, strict=True):
            if isinstance(answer, CirError):
                # Its number within the batch means nothing to the caller.
                why = answer.__cause__ if isinstance(answer.__cause__, CirError) else answer
                result: Result = (query.future, None, why)
            else:
                result = (query.future, Answer(answer, begun - query.asked, took), None)
            told.setdefault(query.loop, []).append(result)
        for loop, results in told.items():
            deliver_all(loop, results)


def _alike(batch: Iterable[Query]) -> list[list[Query]]:
    """The queries that can be computed together, side by side, in the order in which they came."""
    groups: dict[Hashable, list[Query]] = {}
    for query in batch:
        groups.setdefault((id(query.opened), query.wanted.key()), []).append(query)
    return list(groups.values())
