"""Every barrier of the kernels has a reason, and the checked machine notices when it is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from tests.emulation.emulated import BUILD, KERNELS, EmulatedDevice, KernelFault, machine
from tests.scoring.cases import check_topk, random_terms, rows_of

NEVER = Tuning(queries=10**9, rows=0)
ALWAYS = Tuning(queries=1, rows=0, first_rows=64, least_first_rows=64, list_capacity=256, most_listed=0)
BARRIER = re.compile(r"^\s*device::barrier\(\);")

FAULT = r"a race|nothing wrote|outside of memory|as if it could not change|no fence, barrier and atomic"

SLACK = "a slack that is too small"
OTHERS = {
    "a row too many": (
        "scan.cuh",
        "index = at < end ? at : base;",
        "index = at < end || PLANTED ? at : base;",
    ),
    "a vector too many": ("gallery.cuh", "v < args.vectors; v += 32", "v < args.vectors + PLANTED; v += 32"),
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
"""File, what is right, and what is wrong where `PLANTED` is true; neither has more lines."""

CHOICE = """#include <device.cuh>
static int chosen = 0;
CIR_UNWATCHED static bool planted(int mistake) { return mistake == chosen; }
extern "C" void choose_mistake(int mistake) { chosen = mistake; }
"""


def barriers() -> list[tuple[str, int]]:
    found = []
    for path in sorted(KERNELS.glob("*.cuh")):
        for number, line in enumerate(path.read_text().split("\n")):
            if BARRIER.match(line):
                found.append((path.name, number))
    return found


MISTAKES: list[Any] = [None, *OTHERS, *barriers()]


@pytest.fixture(scope="module")
def spoilt() -> Path:
    """The kernels with all mistakes, one of which shows: compiling takes longer than finding them."""
    texts = {path.name: path.read_text() for path in KERNELS.glob("*.cu*")}
    for mistake, (name, right, wrong) in OTHERS.items():
        assert right in texts[name], f"the kernels have changed; plant {mistake} anew"
        wrong = wrong.replace("PLANTED", f"planted({MISTAKES.index(mistake)})")
        texts[name] = texts[name].replace(right, wrong, 1)
    for name, number in barriers():
        lines = texts[name].split("\n")
        lines[number] = f"if (!planted({MISTAKES.index((name, number))})) {lines[number].strip()}"
        texts[name] = "\n".join(lines)
    texts["score.cu"] = CHOICE + texts["score.cu"]
    # Where it is found compiled the next time.
    folder = BUILD / f"spoilt-{hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]}"
    if not folder.exists():
        half = folder.with_suffix(f".{os.getpid()}")
        half.mkdir(parents=True)
        for name, text in texts.items():
            (half / name).write_text(text)
        try:
            half.rename(folder)
        except OSError:  # somebody else was sooner
            shutil.rmtree(half)
    return folder


@contextlib.contextmanager
def showing(kernels: Path, mistake: Any) -> Iterator[None]:
    choose = machine(True, kernels).choose_mistake
    choose(MISTAKES.index(mistake))
    try:
        yield
    finally:
        choose(0)


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


def test_without_a_mistake_they_pass_every_check(spoilt: Path) -> None:
    with showing(spoilt, None):
        exercise(spoilt)


@pytest.mark.parametrize("mistake", [mistake for mistake in MISTAKES[1:] if mistake != SLACK], ids=str)
def test_a_planted_mistake_is_found(spoilt: Path, mistake: Any) -> None:
    with showing(spoilt, mistake), pytest.raises(KernelFault, match=FAULT):
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
    with showing(spoilt, SLACK), pytest.raises(AssertionError, match="not the definition's"):
        check_topk(scorer.topk(terms, 20), terms, rows, 20)
