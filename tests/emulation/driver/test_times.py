"""The benchmark's times of a GPU hold none of the host's, which enqueues more slowly than a GPU works."""

from __future__ import annotations

import pytest

from tests.emulation.driver.building import build_driver, run_program
from tests.emulation.driver.conftest import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)

from tests.emulation.driver.times import BYTES, LAUNCHES

CALL_US, RATE = 8, 100_000
ALONE = LAUNCHES * BYTES / RATE / 1e3
"""Milliseconds of the GPU for what is timed: a launch takes less of it than of the host."""


def milliseconds(program: str, order: str) -> float:
    settings = {"order": order, "call": CALL_US, "rate": RATE}
    done = run_program("tests.emulation.driver.times", program, driver=build_driver(), **settings)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("order", ["late", "early", "0"])
def test_the_start_event_waits_until_all_is_enqueued(order: str) -> None:
    assert milliseconds("by_the_benchmark", order) == pytest.approx(ALONE, rel=1e-3)


@pytest.mark.parametrize("order", ["late", "0"])
@pytest.mark.parametrize("program", ["on_an_idle_stream", "behind_many_short_launches"])
def test_without_that_the_time_would_be_the_hosts(program: str, order: str) -> None:
    """A stream that is kept busy by launches which end before the next is there is as idle as without any."""
    assert milliseconds(program, order) > LAUNCHES * CALL_US / 1e3 > 2 * ALONE
