"""Queries that wait at the same time are computed together. None waits for others to come."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from cir_infer.errors import CirError
from cir_infer.hits import Hit, Hits
from cir_infer.serving.background import Result, deliver, deliver_all
from cir_infer.serving.metrics import Metrics
from cir_infer.serving.opened import Opened

__all__ = ["Answer", "Batcher", "Pace", "Query", "Wanted"]

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
        if self.where is None and not self.exclude and self.balance is None:
            return (self.k, self.exclude_reference)
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


class Query:
    """A query on its way, made in the event loop that wants its answer.

    Args:
        opened: the searcher that answers it.
        reference: a prepared image, a Hit, or None; set before it is asked.
        text: see `Searcher.query`.
        wanted: what is wanted.
        deadline: on `time.monotonic`; later it is dropped.

    Attributes:
        future: its answer. Raises CirError, see `Searcher.query`, or TimeoutError: the deadline passed before
            its turn came. Cancelled, the query is dropped unless its computation has begun.
        asked: when it began to wait for its turn, on `time.monotonic`.
    """

    __slots__ = ("asked", "deadline", "future", "loop", "opened", "reference", "text", "wanted")

    def __init__(self, opened: Opened, reference: Any, text: Any, wanted: Wanted, deadline: float) -> None:
        self.opened, self.reference, self.text = opened, reference, text
        self.wanted, self.deadline = wanted, deadline
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Answer] = self.loop.create_future()
        self.asked = 0.0

    @property
    def encodes(self) -> bool:
        """Whether its image has to be encoded, for which the engine takes all its threads."""
        return self.reference is not None and not isinstance(self.reference, Hit)

    def fail(self, error: BaseException) -> None:
        """End it without an answer."""
        deliver(self.loop, self.future, None, error)


_CALM = 1.0
"""Seconds after a refusal, from which on refusals take nothing from the queries."""


class Pace:
    """How fast queries are answered, whatever computes them and however many at a time.

    Time counts from answer to answer while there is something to do, so what takes the processor from the
    queries shows: refusals, other programs.
    """

    def __init__(self) -> None:
        self._spent = self._count = 0.0
        self._since = time.monotonic()
        self._usual = 0.0
        self._refused, self._refusals = -math.inf, 0.0

    @property
    def seconds_a_query(self) -> float:
        """From one answer to the next, lately; 0 before the first."""
        return self._spent / self._count if self._count else 0.0

    def begin(self) -> None:
        """There is something to do, and was not before."""
        self._since = time.monotonic()

    def answered(self, count: int) -> None:
        """So many were answered since it began, or since the last were."""
        now, kept = time.monotonic(), 0.95**count
        self._spent = kept * self._spent + now - self._since
        self._count = kept * self._count + count
        self._since = now
        self._refusals *= kept
        if not self._is_storm(now):
            self._usual += (1 - 0.999**count if self._usual else 1.0) * (self.seconds_a_query - self._usual)

    def refused(self) -> None:
        """Queries come faster than they are answered."""
        self._refused = time.monotonic()
        self._refusals += 1

    def _is_storm(self, now: float) -> bool:
        """Whether more is refused than answered, lately. A refusal takes a small part of a query's time."""
        return self._refusals > self._count and now - self._refused <= _CALM

    def room(self, most: int) -> int:
        """How many queries may be in work so that none waits longer than the last of `most` usually does.

        Usual is what was before more were refused than answered. Refusing takes the processor too; were as
        many let in as before, each would wait longer the more are refused. With fewer refusals it is not
        they that make queries slow: other queries came, or another gallery, and they are let in and learned
        from. A storm also makes waits uneven, which the last percent feels: so a quarter less is let in. An
        eighth always is.
        """
        slow = self.seconds_a_query > self._usual > 0
        if not slow or not self._is_storm(time.monotonic()):
            return most
        return max(int(0.75 * most * self._usual / self.seconds_a_query), most // 8, 1)


class _Batch:
    """Queries that are computed together, and whether any of them encodes an image."""

    def __init__(self, queries: list[Query]) -> None:
        self.queries = queries
        self.encodes = any(query.encodes for query in queries)


class Batcher:
    """Threads that compute what waits.

    A second batch beside the first uses a processor's other cores while the first one's texts are read and
    its hits are put together, in Python. It is begun once enough waits to be worth it: small batches take
    more time a query than large ones.

    Args:
        most: queries that are computed together at most.
        metrics: counts batches.
        beside: batches that are computed at the same time, at most.
    """

    def __init__(self, most: int, metrics: Metrics, beside: int = 1) -> None:
        self._most, self._metrics = most, metrics
        self._waiting: deque[Query] = deque()
        self._there_is = threading.Condition()
        self._closed = self._is_looked_after = False
        self._computing: list[_Batch] = []
        self._pace = Pace()
        self._threads = [
            threading.Thread(target=self._run, name=f"cir-serve-queries-{number}", daemon=True)
            for number in range(beside)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pace(self) -> Pace:
        """How fast queries were answered lately."""
        return self._pace

    def ask(self, query: Query) -> None:
        """Have a query answered, in its event loop; its future says how.

        It is begun in the loop's next turn, with those that came in the same turn. Were each begun as it is
        read, the first of many would be computed alone while the others are still in their sockets.

        Raises:
            RuntimeError: the service is ending.
        """
        self._add(query)
        if not self._is_looked_after:
            self._is_looked_after = True
            query.loop.call_soon(self._look_later)

    def _look_later(self) -> None:
        self._is_looked_after = False
        self._look()

    def _add(self, query: Query) -> None:
        query.asked = time.monotonic()
        with self._there_is:
            if self._closed:
                raise RuntimeError("the service is ending")
            if not self._waiting and not self._computing:
                self._pace.begin()
            self._waiting.append(query)

    def _look(self) -> None:
        """Wake a thread if there is something to begin."""
        with self._there_is:
            if self._waiting and self._is_worth_it():
                self._there_is.notify()

    def ask_made(self, query: Query, make: Callable[[], Any]) -> None:
        """Have a query answered whose reference has to be made first, in this thread, whichever it is.

        What goes wrong is its answer.

        Args:
            query: it is left alone where nobody wants it any more.
            make: gives the reference.
        """
        if not self._is_wanted(query):
            return
        try:
            query.reference = make()
            self._add(query)
            self._look()
        except Exception as error:
            query.fail(error)
        except BaseException as error:
            query.fail(RuntimeError(f"a thread was ended by {type(error).__name__}"))
            raise

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._there_is:
            self._closed = True
            self._there_is.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while batch := self._next():
            try:
                for group in _alike(filter(self._is_wanted, batch.queries)):
                    self._answer(group)
            except Exception as error:  # a thread that ends would leave all that come to their deadlines
                _log.exception("a batch of %d queries failed", len(batch.queries))
                for query in batch.queries:
                    query.fail(error)
            finally:
                with self._there_is:
                    self._computing.remove(batch)

    def _is_worth_it(self) -> bool:
        """Whether there is something to begin: anything where nothing is computed, else no tiny batch."""
        if any(batch.encodes for batch in self._computing):
            return False
        return 2 * len(self._waiting) >= max((len(batch.queries) for batch in self._computing), default=1)

    def _next(self) -> _Batch | None:
        """What waits, at most `most`; waits only for a first one. None at the end."""
        with self._there_is:
            while not (self._waiting and self._is_worth_it()) and not self._closed:
                self._there_is.wait()
            queries = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            if not queries:
                return None
            batch = _Batch(queries)
            self._computing.append(batch)
            return batch

    def _is_wanted(self, query: Query) -> bool:
        if query.future.done():
            self._metrics.cancelled.labels("disconnected").inc()
            return False
        if query.deadline <= time.monotonic():
            self._metrics.cancelled.labels("deadline").inc()
            query.fail(TimeoutError())
            return False
        return True

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
        with self._there_is:
            self._pace.answered(len(group))
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
