"""How work is shared out on GPUs of several sizes: pure arithmetic, so that all of them are tried."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir_infer.scoring.cuda.shapes import most_of_block, shared_out, stage_growth
from cir_infer.scoring.cuda.tuning import UNMEASURED, Tuning

GPUS = {"Orin Nano": 8, "Orin": 16, "T4": 40, "L4": 58, "H200": 132}


@pytest.mark.parametrize("gpu", GPUS)
@given(count=st.integers(1, 10_000_000))
def test_blocks_are_as_busy_as_whole_rows_allow(gpu: str, count: int) -> None:
    most = 2 * GPUS[gpu]
    run, blocks = shared_out(count, most)
    assert run % 32 == 0 and 32 <= run <= 256 and 1 <= blocks <= most
    assert most_of_block(count, run, blocks) == math.ceil(count / most)
    if count > 8_000:
        assert count / (most * most_of_block(count, run, blocks)) >= 0.95


@pytest.mark.parametrize(
    ("count", "most", "run"), [(20, 16, 32), (1_000, 264, 32), (15_000, 264, 32), (70_001, 80, 224)]
)
def test_every_row_is_taken_once(count: int, most: int, run: int) -> None:
    """As scan.cuh divides what `shared_out` gives it."""
    assert shared_out(count, most)[0] == run
    blocks = shared_out(count, most)[1]
    taken = np.zeros(count, int)
    for stripe in range(0, count, run * blocks):
        left = count - stripe
        this = run if left >= run * blocks else -(-left // blocks)
        for block in range(blocks):
            taken[stripe + block * this : min(count, stripe + (block + 1) * this)] += 1
    assert (taken == 1).all()


def test_there_are_several_runs_and_they_are_long() -> None:
    for most in (16, 80, 264):
        assert shared_out(1_000_000, most)[0] == 256
        assert 3 <= math.ceil(100 * most / shared_out(100 * most, most)[0] / most) <= 4


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
        return stages * (10e-6 + 0.3e-9 * queries * listed * (growth - 1))

    growth = stage_growth(UNMEASURED, queries, listed, first, count, most)
    assert 2 <= growth <= most
    assert cost(growth) <= min(map(cost, range(2, most + 1))) * 1.0001


def test_large_batches_take_short_lists_and_small_ones_few_stages() -> None:
    assert stage_growth(UNMEASURED, 1024, 50, 256, 100_000, 81) <= 5
    assert stage_growth(UNMEASURED, 4, 50, 8192, 1_000_000, 81) >= 12
    slow_launches = Tuning(queries=4, rows=32_768, stage=1e6)
    assert stage_growth(slow_launches, 1024, 50, 256, 100_000, 400) == 391  # one stage
