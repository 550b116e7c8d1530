"""Every barrier of the kernels has a reason, and the checked machine notices when it is missing."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from tests.emulation.emulated import KERNELS, EmulatedDevice, KernelFault
from tests.emulation.planted import FAULT, Mistake, Planted
from tests.scoring.cases import check_topk, random_terms, rows_of

NEVER = Tuning(queries=10**9, rows=0)
ALWAYS = Tuning(queries=1, rows=0, first_rows=64, least_first_rows=64, list_capacity=256, most_listed=0)
SLACK = "a slack that is too small"
OTHERS = {
    "a row too many": (
        "scan.cuh",
        "index = at < end ? at : base;",
        "index = at < end || PLANTED ? at : base;",
    ),
    "a vector too many": (
        "gallery.cuh",
        "sum = 0;\n        for (uint32_t v = device::lane(); v < args.vectors;",
        "sum = 0;\n        for (uint32_t v = device::lane(); v < args.vectors + PLANTED;",
    ),
    "a key too many": ("selection.cuh", "i * kThreads < left ?", "i * kThreads < left + PLANTED ?"),
    "an operand too many": (
        "shortlist.cuh",
        "i < block_groups * group_vectors",
        "i < block_groups * group_vectors + PLANTED",
    ),
    "bins that nobody cleared": ("selection.cuh", "s.bins[i] = 0;", "if (!PLANTED) s.bins[i] = 0;"),
    "a count that nobody cleared": (
        "scan.cuh",
        "shared.count = carried;",
        "if (!PLANTED) shared.count = carried;",
    ),
    "a count without atomics": (
        "selection.cuh",
        "keys[device::add(&s.kept, 1)]",
        "keys[PLANTED ? s.kept++ : device::add(&s.kept, 1)]",
    ),
    "no fence before the ticket": (
        "scan.cuh",
        "    device::fence();\n    device::barrier();  //",
        "    if (!PLANTED) device::fence();\n    device::barrier();  //",
    ),
    "keys of other blocks from a cache": (
        "merge.cuh",
        "return device::load_fresh(merged + i);",
        "return PLANTED ? merged[i] : device::load_fresh(merged + i);",
    ),
    "peaks of other blocks from a cache": (
        "block_keys.cuh",
        "device::load_fresh(peaks + block)",
        "(PLANTED ? peaks[block] : device::load_fresh(peaks + block))",
    ),
    SLACK: (
        "exact_terms.cuh",
        "const float terms = query",
        "if (PLANTED) size = 0; const float terms = query",
    ),
}
KINDS = Planted(KERNELS, OTHERS)


@pytest.fixture(scope="module")
def spoilt() -> Path:
    return KINDS.written()


CASES: dict[str, tuple[str, Tuning, int, int, bool, int, float, int]] = {
    "one block's keys": ("float16", NEVER, 900, 40, True, 72, 1.0, 900),
    "many keys": ("float16", NEVER, 2600, 600, False, 24, 1.0, 2600),
    "more keys handed on than threads, k fewer": ("float16", NEVER, 1000, 200, False, 16, 1.0, 1000),
    "squares beyond float32": ("float16", NEVER, 400, 3, True, 16, 1e17, 400),
    "more rows than float32 can tell apart": ("float16", NEVER, 400, 3, True, 16, 1.0, 2),
    "tensor cores": ("float32", ALWAYS, 900, 40, True, 40, 1.0, 900),
    "tensor cores, int8": ("int8", ALWAYS, 700, 300, False, 24, 1.0, 700),
}
"""Row type, tuning, rows, k, weighted, values, their size, different rows: all kernels that share memory."""

MACHINES = ((0, 2), (0, 8), (1, 2), (2, 8))
"""Schedule and multiprocessors: one block and several for each query."""

ORDER = dict.fromkeys(
    [
        # What shows most mistakes for the least of work.
        ((0, 2), "squares beyond float32"),
        ((0, 2), "tensor cores, int8"),
        ((0, 8), "squares beyond float32"),
        ((0, 2), "more rows than float32 can tell apart"),
        ((0, 8), "more keys handed on than threads, k fewer"),
        ((0, 8), "tensor cores"),
        *itertools.product(MACHINES, CASES),
    ]
)


def exercise(kernels: Path) -> None:
    """Small galleries on every machine."""
    for (schedule, multiprocessors), case in ORDER:
        row_type, tuning, n, k, weighted, d, size, different = CASES[case]
        values = np.random.default_rng(0).standard_normal((n, d))[np.arange(n) % different]
        rows = rows_of(values, row_type, (200,))
        terms = random_terms(np.random.default_rng(1), 3, 2, d, weighted)
        terms = dataclasses.replace(terms, numerators=terms.numerators * np.float32(size))
        device = EmulatedDevice(
            checked=True, schedule=schedule, kernels=kernels, multiprocessors=multiprocessors
        )
        check_topk(CudaScorer(rows, device=device, tuning=tuning).topk(terms, k), terms, rows, k)


def test_without_a_mistake_they_pass_every_check(spoilt: Path) -> None:
    with KINDS.showing(spoilt, None):
        exercise(spoilt)


@pytest.mark.parametrize("mistake", [mistake for mistake in KINDS.mistakes if mistake != SLACK], ids=str)
def test_a_planted_mistake_is_found(spoilt: Path, mistake: Mistake) -> None:
    with KINDS.showing(spoilt, mistake), pytest.raises(KernelFault, match=FAULT):
        exercise(spoilt)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_slack_that_is_too_small_gives_wrong_rows(spoilt: Path, weighted: bool) -> None:
    """What is left of terms that cancel is less than what float32 loses of each."""
    rng = np.random.default_rng(3)
    base = random_terms(rng, 4, 2, 96, True)
    assert base.weights is not None
    n, w = base.numerators.copy(), base.weights.copy()
    n[:, 1], w[:, 1] = -n[:, 0], w[:, 0]
    n[:, 1, :3] *= np.float32(1 + 2**-20)
    terms = QueryTerms(n, w if weighted else None, base.names)
    rows = rows_of(rng.standard_normal((900, 96)), "float32")
    scorer = CudaScorer(rows, device=EmulatedDevice(kernels=spoilt, checked=True), tuning=NEVER)
    check_topk(scorer.topk(terms, 20), terms, rows, 20)
    with KINDS.showing(spoilt, SLACK), pytest.raises(AssertionError, match="not the definition's"):
        check_topk(scorer.topk(terms, 20), terms, rows, 20)
