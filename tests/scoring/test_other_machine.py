"""The native scorer compiled for another machine and run by an emulator, through the same suite.

`make neon-check` sets CIR_CASE_RUNNER to the command that runs kernels/score/case_runner.cpp, e.g.
"qemu-aarch64-static build/neon/cir_score_cases"; without it there is nothing to check here.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from cir_infer.scoring.contract import Rows, Scorer
from tests.other_machine import CaseRunner, command
from tests.scoring.cases import pack, random_terms
from tests.scoring.conformance import ScorerConformance
from tests.scoring.elsewhere import ElsewhereScorer
from tests.scoring.test_tokens import check, items_of

RUNNER = command("CIR_CASE_RUNNER")
if not RUNNER:
    pytest.skip("CIR_CASE_RUNNER is not set; run `make neon-check`", allow_module_level=True)


@functools.cache
def runner(instruction_set: str) -> CaseRunner:
    return CaseRunner([*RUNNER, instruction_set])


class TestNeon(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return ElsewhereScorer(rows, runner("neon"))


class TestNeonDot(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return ElsewhereScorer(rows, runner("neondot"), products="int8")


class TestNeonExactFromInt8(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return ElsewhereScorer(rows, runner("neon"), 3)


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("first_list", [None, 3])
def test_items_of_several_vectors(row_type: str, first_list: int | None) -> None:
    rng = np.random.default_rng(5)
    for m, d in ((1, 16), (3, 40), (33, 24)):
        rows = items_of(rng.standard_normal((50, m, d)), row_type, (20,))
        scorer = ElsewhereScorer(rows, runner("neon"), first_list)
        for q, j, weighted in ((1, 1, False), (2, 2, True), (9, 1, False), (9, 2, True)):
            terms = random_terms(rng, q, j, d, weighted)
            check(scorer, rows, terms, 7, pack(rng.random(50) < 0.7))
            check(scorer, rows, terms, 7)
