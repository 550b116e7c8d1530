"""Asks all shards at the same time, each by one of its replicas, and bears with those that fail or are slow.

Of each shard one replica is asked first: the one with the least to do that has not failed lately. Should it
take longer than 95 of 100 answers of this shard took so far, another is asked as well, and the first answer
counts (Dean and Barroso, "The Tail at Scale", 2013). A replica that fails is passed over for the next one.
Those that could not be reached are asked again until the deadline.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from cir_infer.errors import CirError, MissingShard, ShardError, UsageError
from cir_infer.processes.threads import Threads
from cir_infer.shards.shard import Shard

__all__ = ["Counts", "Fanout", "Group"]

T = TypeVar("T")
Work: TypeAlias = "Callable[[Shard, float | None], Any]"

_OBSERVED, _ENOUGH = 256, 20
"""Answers of a shard that are remembered, and how many say what is usual."""
_USUAL = 0.95
_RESTING = 1.0
"""Seconds for which a replica that failed is asked last."""
_PAUSES = (0.02, 0.5)
"""Seconds until a replica that could not be reached is asked again: the first time, and at most."""
_MOST_GIVEN_UP = 4
"""Calls that were given up and have not come back, with which a replica is not asked any more."""


@dataclass
class Counts:
    """What a searcher over shards had to do for its answers.

    Attributes:
        asked: calls of replicas.
        hedged: of these, because another was slow.
        retried: of these, because another, or the same before, failed.
        missing: shards that did not answer in time.
    """

    asked: int = 0
    hedged: int = 0
    retried: int = 0
    missing: int = 0


@dataclass(eq=False)
class _Replica:
    """A replica, and the calls of it that run; one that an interrupt kept from its thread is soon none."""

    shard: Shard
    calls: weakref.WeakSet[_Attempt] = field(default_factory=weakref.WeakSet)
    failed: float = float("-inf")

    @property
    def given_up(self) -> int:
        """Calls that nobody waits for."""
        return sum(call.given_up for call in self.calls)


class Group:
    """A shard: its replicas, how large it is and how long it takes.

    Args:
        shards: the replicas.

    Attributes:
        size: how many items it has, as far as is known.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards, self.size = tuple(shards), 0
        self._took: dict[int, deque[float]] = {}
        self._turn = 0
        self.begin()

    def begin(self) -> None:
        """Nobody is asked anything: in a forked child, the parent's calls never come back."""
        self._replicas = [_Replica(shard) for shard in self.shards]

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return " or ".join(dict.fromkeys(shard.place for shard in self.shards))

    def observe(self, weight: int, seconds: float) -> None:
        """Remember how long an answer took, among those of about as much work."""
        self._took.setdefault(weight.bit_length(), deque(maxlen=_OBSERVED)).append(seconds)

    def usual(self, weight: int) -> float | None:
        """In what time 95 of 100 answers came, None where few came yet."""
        took = sorted(self._took.get(weight.bit_length(), ()))
        return took[int(_USUAL * (len(took) - 1))] if len(took) >= _ENOUGH else None

    def ranked(self, now: float) -> list[_Replica]:
        """The replicas, the one to ask first before the others; equal ones take turns."""
        self._turn = (self._turn + 1) % len(self._replicas)
        turned = self._replicas[self._turn :] + self._replicas[: self._turn]
        return sorted(turned, key=lambda one: (one.given_up, now - one.failed < _RESTING, len(one.calls)))


@dataclass(eq=False)
class _Turn:
    """One shard in one question: whom to ask next, and when more is to be done about it."""

    group: Group
    order: list[_Replica]
    hedge_at: float
    again_at: float = float("inf")
    next: int = 0
    pause: float = _PAUSES[0]
    running: list[_Attempt] = field(default_factory=list)
    answered: bool = False
    answer: Any = None
    error: CirError | None = None

    @property
    def open(self) -> bool:
        """Whether an answer may still come."""
        return not self.answered and (bool(self.running) or self.again_at < float("inf"))


@dataclass(eq=False)
class _Attempt:
    """A call of a replica."""

    turn: _Turn
    replica: _Replica
    began: float = 0.0
    value: Any = None
    error: BaseException | None = None
    given_up: bool = False


class Fanout:
    """Asks several shards. Threads may share one; it belongs to one process.

    Args:
        groups: the shards.
        deadline: seconds for all of them, None for as long as it takes.
    """

    def __init__(self, groups: Sequence[Group], deadline: float | None) -> None:
        self.groups, self.counts = tuple(groups), Counts()
        for group in self.groups:
            group.begin()
        self._deadline = deadline
        replicas = sum(len(group.shards) for group in groups)
        self._threads = Threads((_MOST_GIVEN_UP + 2) * replicas + 8)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()

    def ask(
        self,
        work: Callable[[Shard, float | None], T],
        weight: int,
        again: bool = True,
        began: float | None = None,
    ) -> list[T | MissingShard]:
        """What each shard answers, or what is missing because it did not.

        Args:
            work: asks one replica, given the seconds that are left.
            weight: how much work it is, as a count: of queries for instance.
            again: whether replicas that could not be reached are asked again.
            began: when the deadline began to count, on `time.monotonic`; None for now.

        Raises:
            UsageError: the question's fault, as one shard has found.
            BaseException: what came out of a shard and is no `CirError`.
        """
        return _Question(self, work, weight, self._deadline, again, began).answers(self.groups)

    def begin(self, turn: _Turn, run: Callable[[_Attempt], None]) -> bool:
        """Ask the next replica that can be asked; False where there is none."""
        while turn.next < len(turn.order):
            replica = turn.order[turn.next]
            turn.next += 1
            attempt = _Attempt(turn, replica)
            with self._lock:
                given_up = replica.given_up
                if given_up >= _MOST_GIVEN_UP:
                    turn.error = turn.error or ShardError(f"{given_up} calls have not come back from it")
                    continue
                replica.calls.add(attempt)
                self.counts.asked += 1
            turn.running.append(attempt)
            self._threads.submit(run, attempt)
            return True
        return False

    def ranked(self, group: Group, weight: int) -> tuple[list[_Replica], float | None]:
        """The replicas of a shard, and its usual time."""
        with self._lock:
            return group.ranked(time.monotonic()), group.usual(weight)

    def ended(self, attempt: _Attempt) -> None:
        """A call has come back."""
        with self._lock:
            attempt.replica.calls.discard(attempt)

    def failed(self, attempt: _Attempt) -> None:
        """A call has come back without an answer."""
        with self._lock:
            attempt.replica.failed = time.monotonic()

    def observe(self, attempt: _Attempt, weight: int) -> None:
        """A call has answered first."""
        with self._lock:
            attempt.turn.group.observe(weight, time.monotonic() - attempt.began)

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of the counts."""
        with self._lock:
            setattr(self.counts, name, getattr(self.counts, name) + number)

    def give_up(self, attempts: Sequence[_Attempt]) -> None:
        """Wait no longer for calls; they go when they come back."""
        for attempt in attempts:
            attempt.given_up = True


class _Question:
    """One question to all shards."""

    def __init__(
        self,
        fanout: Fanout,
        work: Work,
        weight: int,
        limit: float | None,
        again: bool,
        began: float | None,
    ) -> None:
        self._fanout, self._work, self._weight, self._limit = fanout, work, weight, limit
        self._may_repeat = again and limit is not None
        began = time.monotonic() if began is None else began
        self._until = float("inf") if limit is None else began + limit
        self._done: queue.SimpleQueue[_Attempt] = queue.SimpleQueue()

    def answers(self, groups: Sequence[Group]) -> list[Any]:
        turns = [self._turn(group) for group in groups]
        try:
            for turn in turns:
                self._begin(turn)
            while waiting := [turn for turn in turns if turn.open]:
                now = time.monotonic()
                if now >= self._until:
                    break
                due = min([self._until, *(min(turn.hedge_at, turn.again_at) for turn in waiting)])
                try:
                    self._take(self._done.get(timeout=None if due == float("inf") else max(due - now, 0.0)))
                except queue.Empty:
                    for turn in waiting:
                        self._spur(turn, time.monotonic())
        finally:
            self._fanout.give_up([attempt for turn in turns for attempt in turn.running])
        return [self._result(number, turn) for number, turn in enumerate(turns)]

    def _turn(self, group: Group) -> _Turn:
        order, usual = self._fanout.ranked(group, self._weight)
        if usual is None:
            usual = float("inf") if self._limit is None else self._limit / 2
        return _Turn(group, order, time.monotonic() + usual if len(order) > 1 else float("inf"))

    def _begin(self, turn: _Turn) -> bool:
        """Ask the next replica. Where none is left, they are all asked again later, if there is time."""
        if self._fanout.begin(turn, self._run):
            return True
        if not turn.running and isinstance(turn.error, ShardError) and self._may_repeat:
            turn.again_at = time.monotonic() + turn.pause
            turn.pause = min(2 * turn.pause, _PAUSES[1])
        return False

    def _run(self, attempt: _Attempt) -> None:
        attempt.began = time.monotonic()
        left = None if self._limit is None else max(self._until - attempt.began, 0.0)
        try:
            attempt.value = self._work(attempt.replica.shard, left)
        except BaseException as error:
            attempt.error = error
        self._fanout.ended(attempt)
        self._done.put(attempt)

    def _spur(self, turn: _Turn, now: float) -> None:
        """Ask once more a shard that could not be reached, and another replica of one that is slow."""
        if turn.again_at <= now:
            turn.again_at, turn.next = float("inf"), 0
            turn.order = self._fanout.ranked(turn.group, self._weight)[0]
            if self._begin(turn):
                self._fanout.count("retried")
        elif turn.hedge_at <= now:
            turn.hedge_at = float("inf")
            if turn.running and self._fanout.begin(turn, self._run):
                self._fanout.count("hedged")

    def _take(self, attempt: _Attempt) -> None:
        """What a call has brought."""
        turn, error = attempt.turn, attempt.error
        turn.running.remove(attempt)
        if turn.answered:
            return
        if error is None:
            turn.answer, turn.answered, turn.error = attempt.value, True, None
            self._fanout.observe(attempt, self._weight)
            return
        if isinstance(error, UsageError) or not isinstance(error, CirError):
            raise error  # the question's fault, or ours
        turn.error = error
        self._fanout.failed(attempt)
        if self._begin(turn):
            self._fanout.count("retried")

    def _result(self, number: int, turn: _Turn) -> Any:
        if turn.answered:
            return turn.answer
        self._fanout.count("missing")
        late = "it did not answer in time" if self._limit is None else f"no answer within {self._limit:g} s"
        reason = late if turn.error is None else str(turn.error)
        return MissingShard(number, turn.group.place, turn.group.size, reason)
