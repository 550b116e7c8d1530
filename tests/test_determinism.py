"""A test finds today what it found yesterday, and on any machine."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


def test_property_tests_draw_the_same_examples_in_every_run() -> None:
    drawn: list[bytes] = []

    @given(st.binary(min_size=8))
    def draw(value: bytes) -> None:
        drawn.append(value)

    draw()
    first, drawn[:] = drawn[:], []
    draw()
    assert len(first) > 50 and drawn == first


def thrown(name: str | None = None) -> list[float]:
    """Of every generator that nobody need name, or of ones of that name's seed."""
    if name is None:
        return [random.random(), float(np.random.random()), float(torch.rand(1))]
    seed = zlib.crc32(name.encode())
    own = torch.Generator().manual_seed(seed)
    return [
        random.Random(seed).random(),
        float(np.random.RandomState(seed).random()),
        float(torch.rand(1, generator=own)),
    ]


@pytest.fixture
def weights() -> list[float]:
    return thrown()


def test_dice_that_nobody_seeds_fall_alike_whatever_ran_before(weights: list[float]) -> None:
    assert weights == thrown("weights")
    assert thrown() == thrown("test_dice_that_nobody_seeds_fall_alike_whatever_ran_before")
