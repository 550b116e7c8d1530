"""Timing: warm-up, interleaving, percentiles, and open-loop load without coordinated omission.

Durations are in milliseconds in results and in seconds inside clocks.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError

__all__ = [
    "OpenLoop",
    "arrivals_at",
    "interleave",
    "open_loop",
    "percentile",
    "quiet_collector",
    "ratio",
    "repeat",
    "steadiness",
    "summarise",
]

Milliseconds = npt.NDArray[np.float64]
Clock = Callable[[], float]

_STEADY_WINDOWS = 10


def percentile(samples: Sequence[float] | Milliseconds, q: float) -> float:
    """The smallest sample that at least q percent of the samples do not exceed (nearest rank).

    Unlike an interpolated percentile it is a latency that someone really waited.

    Raises:
        UsageError: no samples, or q outside (0, 100].
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    if not ordered.size or not 0 < q <= 100:
        raise UsageError(f"percentile {q} of {ordered.size} samples; expected 0 < q <= 100 and samples")
    # The subtrahend keeps 99% of 100 samples at the 99th, where floating point says 99.00000000000001.
    return float(ordered[int(np.ceil(q / 100 * ordered.size - 1e-9)) - 1])


def summarise(samples: Sequence[float] | Milliseconds) -> dict[str, float]:
    """Count, mean and percentiles of latencies in ms, as one plain dictionary."""
    values = np.asarray(samples, np.float64)
    return {
        "samples": int(values.size),
        "mean_ms": float(values.mean()) if values.size else float("nan"),
        **{f"p{q}_ms": percentile(values, q) for q in (10, 50, 90, 95, 99)},
        "max_ms": percentile(values, 100),
    }


def steadiness(samples: Sequence[float] | Milliseconds) -> list[float]:
    """Medians of ten equal stretches of the run, in order: what the latency did over time, in ms."""
    values = np.asarray(samples, np.float64)
    return [float(np.median(part)) for part in np.array_split(values, _STEADY_WINDOWS) if part.size]


def repeat(
    call: Callable[[], object],
    *,
    seconds: float,
    at_least: int = 10,
    at_most: int = 100_000,
    warm_up: int = 3,
    clock: Clock = time.perf_counter,
) -> Milliseconds:
    """Closed loop: the next call starts when the last one has ended.

    Args:
        call: what is timed. On an accelerator it must end with the answer on the host.
        seconds: how long to go on.
        at_least: calls to make however long they take.
        at_most: calls to make however short they are.
        warm_up: calls made first and not counted.
        clock: the clock, in seconds.

    Returns:
        float64 (calls,) milliseconds, in order.
    """
    for _ in range(warm_up):
        call()
    taken: list[float] = []
    with quiet_collector():
        start = clock()
        while len(taken) < at_most and (len(taken) < at_least or clock() - start < seconds):
            before = clock()
            call()
            taken.append(clock() - before)
    return 1e3 * np.asarray(taken)


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    at_least: int = 7,
    at_most: int = 1000,
    warm_up: int = 2,
    settle: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[str, Milliseconds]:
    """Time several alternatives in turn, so that whatever disturbs the machine disturbs all alike.

    A round calls each once, every round in another order; sample i of each alternative belongs to
    round i, so ratios may be taken round by round.

    Args:
        calls: the alternatives by name.
        seconds: how long to go on, for all together.
        at_least: rounds to make however long they take.
        at_most: rounds to make however short they are.
        warm_up: rounds made first and not counted.
        settle: seconds before each call in which nothing is done: threads of another library may spin for a
            while after its call, and take the cores from the next one.
        clock: the clock, in seconds.

    Returns:
        float64 (rounds,) milliseconds by name.
    """
    names = list(calls)
    for _ in range(warm_up):
        for name in names:
            calls[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    with quiet_collector():
        start = clock()
        rounds = 0
        while rounds < at_most and (rounds < at_least or clock() - start < seconds):
            for index in order.permutation(len(names)):
                name = names[index]
                if settle:
                    time.sleep(settle)
                before = clock()
                calls[name]()
                taken[name].append(clock() - before)
            rounds += 1
    return {name: 1e3 * np.asarray(values) for name, values in taken.items()}


def ratio(slower: Milliseconds, faster: Milliseconds) -> dict[str, float]:
    """How many times `slower` takes `faster`: the median over rounds, and the middle 80% of them.

    Args:
        slower: (rounds,) from `interleave`.
        faster: (rounds,) of the same run.
    """
    each = slower / faster
    return {
        "median": float(np.median(each)),
        "p10": percentile(each, 10),
        "p90": percentile(each, 90),
    }


def arrivals_at(rate: float, seconds: float, seed: int = 0) -> npt.NDArray[np.float64]:
    """Poisson arrivals: when each request of independent users comes, in seconds from the start.

    Args:
        rate: requests a second, on average.
        seconds: length of the run.
        seed: of the draw.

    Raises:
        UsageError: a rate or a length that is not positive.
    """
    if rate <= 0 or seconds <= 0:
        raise UsageError(f"{rate} requests a second for {seconds} s; expected positive numbers")
    draw = np.random.default_rng(seed)
    gaps = draw.exponential(1 / rate, max(1, round(rate * seconds)))
    return np.cumsum(gaps)


@dataclass(frozen=True)
class OpenLoop:
    """An open-loop run.

    Attributes:
        latency_ms: (requests,) from the moment a request was due until its answer, waiting included.
        service_ms: (requests,) from its start until its answer: what a closed loop would have reported.
        seconds: from the first due moment until the last answer.
        due_seconds: from the first due moment until the last.
    """

    latency_ms: Milliseconds
    service_ms: Milliseconds
    seconds: float
    due_seconds: float

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latency_ms) / self.seconds

    @property
    def kept_up(self) -> bool:
        """Whether the last answer came soon after the last request: in five service times or 5% of the run.

        Where it did not, the queue grew, and the latencies say how long the run was.
        """
        behind = self.seconds - self.due_seconds
        return behind <= max(5e-3 * percentile(self.service_ms, 50), 0.05 * self.due_seconds)


def open_loop(
    call: Callable[[], object],
    arrivals: npt.NDArray[np.float64],
    *,
    workers: int = 1,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> OpenLoop:
    """Send requests when they are due, whether or not earlier ones have been answered.

    Latency counts from the due moment, so a stall is charged to every request that it delayed. A
    closed loop would have sent fewer requests instead and reported one slow answer (coordinated
    omission, G. Tene).

    Args:
        call: answers one request.
        arrivals: (requests,) due moments in seconds, ascending.
        workers: threads that answer; each takes the next request in order.
        clock: the clock, in seconds.
        sleep: waits so many seconds.
    """
    due = np.asarray(arrivals, np.float64)
    started, ended = np.empty_like(due), np.empty_like(due)
    tickets = iter(range(len(due)))
    lock = threading.Lock()
    failures: list[BaseException] = []
    origin = clock()

    def work() -> None:
        try:
            while not failures:
                with lock:
                    ticket = next(tickets, None)
                if ticket is None:
                    return
                wait = due[ticket] - (clock() - origin)
                if wait > 0:
                    sleep(wait)
                started[ticket] = clock() - origin
                call()
                ended[ticket] = clock() - origin
        except BaseException as error:
            failures.append(error)

    with quiet_collector():
        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return OpenLoop(
        1e3 * (ended - due), 1e3 * (ended - started), float(ended.max() - due[0]), float(due[-1] - due[0])
    )


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect garbage now and not again inside: its pauses belong to whoever made the garbage."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
