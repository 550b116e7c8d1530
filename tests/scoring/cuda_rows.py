"""Rows for the CUDA scorer on the emulated GPU, and tunings that decide which kernels run."""

from __future__ import annotations

from typing import Any

import numpy as np

from cir_infer.scoring.contract import Rows
from cir_infer.scoring.cuda.tuning import Tuning
from tests.scoring.cases import rows_of

NEVER = Tuning(queries=10**9, rows=0)
ALWAYS = Tuning(queries=1, rows=0, first_rows=64, least_first_rows=64, list_capacity=256, most_listed=0)


def gallery(row_type: str = "float16", n: int = 900, d: int = 72, cuts: tuple[int, ...] = (200,)) -> Rows:
    return rows_of(np.random.default_rng(n + d).standard_normal((n, d)), row_type, cuts)


def same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
