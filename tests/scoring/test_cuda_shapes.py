"""How work is shared out on GPUs of several sizes: pure arithmetic, so that all of them are tried."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir_infer.scoring.cuda.shapes import shared_out, stage_growth
from cir_infer.scoring.cuda.tuning import UNMEASURED, Tuning

GPUS = {"Orin Nano": 8, "Orin": 16, "T4": 40, "L4": 58, "H200": 132}
ROUND = 32


def rounds_of_the_busiest(count: int, most: int) -> int:
    rounds, blocks = shared_out(count, most)
    runs = math.ceil(count / (ROUND * rounds))
    assert 1 <= rounds <= 8
    assert 1 <= blocks <= most
    return rounds * math.ceil(runs / blocks)


@pytest.mark.parametrize("gpu", GPUS)
@given(count=st.integers(1, 10_000_000))
def test_blocks_are_as_busy_as_rounds_of_32_rows_allow(gpu: str, count: int) -> None:
    most = 2 * GPUS[gpu]
    fewest = math.ceil(count / (ROUND * most))
    assert rounds_of_the_busiest(count, most) <= 1.01 * fewest


@pytest.mark.parametrize(("gpu", "count"), [("T4", 16_384), ("H200", 65_536), ("H200", 100_000)])
def test_sizes_at_which_half_of_the_blocks_stood_idle(gpu: str, count: int) -> None:
    most = 2 * GPUS[gpu]
    assert count / (ROUND * most * rounds_of_the_busiest(count, most)) > 0.9


def test_long_runs_have_few_barriers() -> None:
    for most in (16, 80, 264):
        assert shared_out(1_000_000, most)[0] >= 7


@given(
    queries=st.integers(1, 4096),
    listed=st.integers(1, 4000),
    first=st.integers(256, 32_768),
    factor=st.floats(1.01, 1e4),
    most=st.integers(2, 100),
)
def test_growth_of_stages_is_cheapest(
    queries: int, listed: int, first: int, factor: float, most: int
) -> None:
    count = max(first + 1, int(first * factor))

    def cost(growth: int) -> float:
        done, stages = first, 0
        while done < count:
            done, stages = done * growth, stages + 1
        return stages * (15e-6 + 0.3e-9 * queries * listed * (growth - 1))

    growth = stage_growth(UNMEASURED, queries, listed, first, count, most)
    assert 2 <= growth <= most
    assert cost(growth) <= min(map(cost, range(2, most + 1))) * 1.0001


def test_large_batches_take_short_lists_and_small_ones_few_stages() -> None:
    assert stage_growth(UNMEASURED, 1024, 50, 256, 100_000, 81) <= 5
    assert stage_growth(UNMEASURED, 4, 50, 8192, 1_000_000, 81) >= 12
    slow_launches = Tuning(queries=4, rows=32_768, stage=1e6)
    assert stage_growth(slow_launches, 1024, 50, 256, 100_000, 400) == 391  # one stage
