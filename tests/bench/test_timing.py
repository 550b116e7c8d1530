"""Percentiles, loops and open-loop latency against known answers, on clocks that the tests turn."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_bench.timing import (
    arrivals_at,
    interleave,
    open_loop,
    percentile,
    ratio,
    repeat,
    steadiness,
    summarise,
)
from cir_infer.errors import UsageError


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_percentiles_are_nearest_ranks():
    samples = list(range(1, 101))
    assert [percentile(samples, q) for q in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([7.0], 50) == 7.0
    # The textbook example of the nearest-rank method.
    assert [percentile([15, 20, 35, 40, 50], q) for q in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 100))
def test_a_percentile_is_the_smallest_sample_that_covers_its_share(samples, q):
    value = percentile(samples, q)
    assert value in samples
    assert sum(s <= value for s in samples) * 100 >= q * len(samples)
    assert sum(s < value for s in samples) * 100 < q * len(samples)


@pytest.mark.parametrize(("samples", "q"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_impossible_percentiles_are_refused(samples, q):
    with pytest.raises(UsageError):
        percentile(samples, q)


def test_a_summary_names_what_a_report_prints():
    assert summarise([4.0, 1.0, 2.0, 3.0]) == {
        "samples": 4,
        "mean_ms": 2.5,
        "p10_ms": 1.0,
        "p50_ms": 2.0,
        "p90_ms": 4.0,
        "p95_ms": 4.0,
        "p99_ms": 4.0,
        "max_ms": 4.0,
    }


def test_steadiness_shows_a_drift_that_a_median_hides():
    assert steadiness([1.0] * 50 + [3.0] * 50) == [1.0] * 5 + [3.0] * 5


def test_the_closed_loop_counts_calls_and_leaves_out_the_warm_up():
    clock = Clock()
    durations = iter([9.0, 9.0, 0.010, 0.020, 0.030, 0.040])
    taken = repeat(lambda: clock.pass_(next(durations)), seconds=0.055, at_least=1, warm_up=2, clock=clock)
    assert taken == pytest.approx([10, 20, 30])


def test_the_closed_loop_makes_its_minimum_and_stops_at_its_maximum():
    clock = Clock()
    assert len(repeat(lambda: clock.pass_(5), seconds=1, at_least=4, warm_up=0, clock=clock)) == 4
    assert len(repeat(lambda: clock.pass_(0), seconds=1, at_most=6, warm_up=0, clock=clock)) == 6


def test_interleaving_gives_each_alternative_one_sample_a_round():
    clock = Clock()
    calls: list[str] = []

    def alternative(name: str, seconds: float):
        def call() -> None:
            calls.append(name)
            clock.pass_(seconds)

        return call

    taken = interleave(
        {"a": alternative("a", 0.001), "b": alternative("b", 0.004)},
        seconds=0,
        at_least=20,
        warm_up=0,
        clock=clock,
    )
    assert all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, 40, 2))
    assert calls[::2].count("a") not in (0, 20), "no alternative always goes first"
    assert ratio(taken["b"], taken["a"]) == pytest.approx({"median": 4, "p10": 4, "p90": 4})


def test_an_open_loop_that_keeps_up_reports_the_service_time():
    clock = Clock()
    run = open_loop(lambda: clock.pass_(0.004), np.arange(1, 11) * 0.010, clock=clock, sleep=clock.pass_)
    assert run.latency_ms == pytest.approx([4.0] * 10)
    assert run.throughput == pytest.approx(10 / 0.094)


def test_an_overloaded_open_loop_charges_the_waiting():
    clock = Clock()
    run = open_loop(lambda: clock.pass_(0.015), np.arange(5) * 0.010, clock=clock, sleep=clock.pass_)
    assert run.latency_ms == pytest.approx([15, 20, 25, 30, 35])
    assert run.service_ms == pytest.approx([15] * 5)


@pytest.mark.parametrize(("service", "kept_up"), [(0.004, True), (0.009, True), (0.015, False)])
def test_a_run_says_whether_it_kept_up(service: float, kept_up: bool):
    clock = Clock()
    due = np.arange(100) * 0.010
    run = open_loop(lambda: clock.pass_(service), due, clock=clock, sleep=clock.pass_)
    assert run.kept_up is kept_up


def test_a_stall_is_charged_to_every_request_that_it_delayed():
    clock = Clock()
    services = iter([0.001, 0.100, *[0.001] * 18])
    run = open_loop(
        lambda: clock.pass_(next(services)), np.arange(20) * 0.010, clock=clock, sleep=clock.pass_
    )
    # Due at 10 ms and answered at 110 ms; the next one was due at 20 ms and is answered at 111 ms.
    assert run.latency_ms[:4] == pytest.approx([1, 100, 91, 82])
    assert percentile(run.latency_ms, 50) > 1.5
    assert percentile(run.service_ms, 50) == pytest.approx(1.0), "what a closed loop would have said"


def test_workers_share_the_requests_and_a_failure_reaches_the_caller():
    answered: list[int] = []
    run = open_loop(lambda: answered.append(1), np.zeros(50), workers=4)
    assert len(answered) == 50
    assert len(run.latency_ms) == 50

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        open_loop(fail, np.zeros(5), workers=2)


def test_arrivals_have_the_rate_and_the_randomness_of_independent_users():
    arrivals = arrivals_at(200.0, 50.0, seed=3)
    gaps = np.diff(arrivals)
    assert len(arrivals) == 10_000
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05), "exponential: deviation equals mean"
    assert np.array_equal(arrivals, arrivals_at(200.0, 50.0, seed=3))
    with pytest.raises(UsageError):
        arrivals_at(0, 1)


def test_the_collector_rests_while_timing_and_works_again_after():
    states: list[bool] = []
    repeat(lambda: states.append(gc.isenabled()), seconds=0, at_least=1, warm_up=0)
    assert states == [False]
    assert gc.isenabled()
