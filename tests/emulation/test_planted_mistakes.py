"""Every barrier of the kernels has a reason, and the checked machine notices when it is missing."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from tests.emulation.emulated import KERNELS, EmulatedDevice, KernelFault
from tests.scoring.cases import check_topk, random_terms, rows_of

NEVER = Tuning(queries=10**9, rows=0)
ALWAYS = Tuning(queries=1, rows=0, first_rows=64, least_first_rows=64, list_capacity=256, most_listed=0)
BARRIER = re.compile(r"^\s*device::barrier\(\);")

FAULT = r"a race|nothing wrote|outside of memory|as if it could not change|no fence, barrier and atomic"

OTHERS = {
    "a row too many": (
        "scan.cuh",
        "const uint32_t index = at < end ? at : base;",
        "const uint32_t index = at;",
    ),
    "a vector too many": ("gallery.cuh", "v < args.vectors; v += 32", "v <= args.vectors; v += 32"),
    "a key too many": (
        "selection.cuh",
        "mine[i] = i * kThreads < left ?",
        "mine[i] = i * kThreads <= left ?",
    ),
    "an operand too many": (
        "shortlist.cuh",
        "i < block_groups * group_vectors",
        "i <= block_groups * group_vectors",
    ),
    "bins that nobody cleared": ("selection.cuh", "s.bins[i] = 0;", "(void)i;"),
    "a count that nobody cleared": (
        "scan.cuh",
        "        shared.count = carried;\n",
        "",
    ),
    "a count without atomics": ("selection.cuh", "keys[device::add(&s.kept, 1)]", "keys[s.kept++]"),
    "no fence before the ticket": (
        "scan.cuh",
        "    device::fence();\n    device::barrier();  //",
        "    device::barrier();  //",
    ),
    "keys of other blocks from a cache": (
        "merge.cuh",
        "return device::load_fresh(merged + i);",
        "return merged[i];",
    ),
    "peaks of other blocks from a cache": (
        "block_keys.cuh",
        "device::load_fresh(peaks + block)",
        "peaks[block]",
    ),
}


def barriers() -> list[tuple[str, int]]:
    found = []
    for path in sorted(KERNELS.glob("*.cuh")):
        for number, line in enumerate(path.read_text().split("\n")):
            if BARRIER.match(line):
                found.append((path.name, number))
    return found


def exercise(kernels: Path) -> None:
    """Small galleries through every kernel that shares memory, one and several blocks for each query."""
    for schedule, multiprocessors in ((0, 2), (1, 2), (0, 8), (2, 8)):
        for row_type, tuning, n, k, weighted, d, size, different in (
            ("float16", NEVER, 900, 40, True, 72, 1.0, 900),
            ("float16", NEVER, 2600, 600, False, 24, 1.0, 2600),
            ("float16", NEVER, 1000, 200, False, 16, 1.0, 1000),  # more keys handed on than threads, k fewer
            ("float16", NEVER, 400, 3, True, 16, 1e17, 400),  # squares beyond float32
            ("float16", NEVER, 400, 3, True, 16, 1.0, 2),  # more rows than float32 can tell apart
            ("float32", ALWAYS, 900, 40, True, 40, 1.0, 900),
            ("int8", ALWAYS, 700, 300, False, 24, 1.0, 700),
        ):
            values = np.random.default_rng(0).standard_normal((n, d))[np.arange(n) % different]
            rows = rows_of(values, row_type, (200,))
            terms = random_terms(np.random.default_rng(1), 3, 2, d, weighted)
            terms = dataclasses.replace(terms, numerators=terms.numerators * np.float32(size))
            device = EmulatedDevice(
                checked=True, schedule=schedule, kernels=kernels, multiprocessors=multiprocessors
            )
            check_topk(CudaScorer(rows, device=device, tuning=tuning).topk(terms, k), terms, rows, k)


def planted(folder: Path, name: str, text: str) -> Path:
    for path in KERNELS.glob("*.cu*"):
        shutil.copy(path, folder)
    (folder / name).write_text(text)
    return folder


def test_the_kernels_as_they_are_pass_every_check() -> None:
    exercise(KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), barriers())
def test_a_missing_barrier_is_found(tmp_path: Path, name: str, number: int) -> None:
    lines = (KERNELS / name).read_text().split("\n")
    lines[number] = ""
    with pytest.raises(KernelFault, match=FAULT):
        exercise(planted(tmp_path, name, "\n".join(lines)))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", sorted(OTHERS))
def test_a_planted_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    name, right, wrong = OTHERS[mistake]
    text = (KERNELS / name).read_text()
    assert text.count(right) >= 1, "the kernels have changed; plant this mistake anew"
    with pytest.raises(KernelFault, match=FAULT):
        exercise(planted(tmp_path, name, text.replace(right, wrong, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
def test_a_slack_that_is_too_small_gives_wrong_rows(tmp_path: Path, weighted: bool) -> None:
    """What is left of terms that cancel is less than what float32 loses of each."""
    right = "const float steps = values / 32 + 32, rounded"
    text = (KERNELS / "exact_terms.cuh").read_text()
    assert text.count(right) == 1, "the kernels have changed; plant this mistake anew"
    spoilt = text.replace(right, "size = 0;\n    " + right)
    rng = np.random.default_rng(3)
    base = random_terms(rng, 4, 2, 96, True)
    assert base.weights is not None
    n, w = base.numerators.copy(), base.weights.copy()
    n[:, 1], w[:, 1] = -n[:, 0], w[:, 0]
    n[:, 1, :3] *= np.float32(1 + 2**-20)
    terms = QueryTerms(n, w if weighted else None, base.names)
    rows = rows_of(rng.standard_normal((900, 96)), "float32")
    for kernels, wrong in ((KERNELS, False), (planted(tmp_path, "exact_terms.cuh", spoilt), True)):
        scorer = CudaScorer(rows, device=EmulatedDevice(kernels=kernels), tuning=NEVER)
        answer = scorer.topk(terms, 20)
        if wrong:
            with pytest.raises(AssertionError, match="not the definition's"):
                check_topk(answer, terms, rows, 20)
        else:
            check_topk(answer, terms, rows, 20)
