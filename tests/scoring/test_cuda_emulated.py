"""The CUDA kernels as they are, through the conformance suite, on the emulated machine of tests/emulation."""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
import pytest

from cir_infer.scoring.contract import Rows, TopK
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from tests.emulation.emulated import EmulatedDevice
from tests.scoring.cases import pack, random_terms, rows_of
from tests.scoring.conformance import ScorerConformance

NEVER = Tuning(queries=10**9, rows=0)
ALWAYS = Tuning(queries=1, rows=0, first_rows=16, least_first_rows=8, list_capacity=64, most_listed=0)


class EmulatedConformance(ScorerConformance):
    """The suite, with its largest cases at a size that suits a machine of a few megahertz."""

    examples = 12
    crowd = 600
    widest = 130

    def test_many_rows(self, row_type: str) -> None:
        rng = np.random.default_rng(5)
        rows = rows_of(rng.standard_normal((4_000, 64)), row_type, cuts=[901, 903])
        for q, k in ((1, 50), (2, 1000), (9, 5)):
            self.check(rows, random_terms(rng, q, 2, 64, True), k)
        self.check(rows, random_terms(rng, 1, 1, 64, False), 2_500)

    @pytest.mark.parametrize("q", [1, 9])
    def test_duplicates_go_by_row_number(self, row_type: str, q: int) -> None:
        rng = np.random.default_rng(q)
        values = rng.standard_normal((7, 40))[rng.integers(0, 7, 1201)]
        rows = rows_of(values, row_type, cuts=[333, 1000])
        allow = pack(rng.random(1201) < 0.7)
        for k in (1, 10, 1201):
            self.check(rows, random_terms(rng, q, 2, 40, True), k)
            self.check(rows, random_terms(rng, q, 1, 40, False), k, allow)

    def test_the_same_question_has_the_same_answer(self, row_type: str) -> None:
        rng = np.random.default_rng(1)
        scorer = self.make(rows_of(rng.standard_normal((700, 64)), row_type))
        for q in (1, 20):
            terms = random_terms(rng, q, 2, 64, True)
            first, again = scorer.topk(terms, 20), scorer.topk(terms, 20)
            for a, b in zip(first, again, strict=True):
                np.testing.assert_array_equal(a, b)

    def test_several_threads_may_ask_at_once(self, row_type: str) -> None:
        rng = np.random.default_rng(2)
        scorer = self.make(rows_of(rng.standard_normal((300, 64)), row_type))
        asked = [random_terms(rng, q, 2, 64, True) for q in (1, 2, 9)]
        alone = [scorer.topk(t, 15) for t in asked]
        answers: dict[int, TopK] = {}
        threads = [
            threading.Thread(target=lambda i=i, t=t: answers.update({i: scorer.topk(t, 15)}))
            for i, t in enumerate(asked)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for i, expected in enumerate(alone):
            for a, b in zip(expected, answers[i], strict=True):
                np.testing.assert_array_equal(a, b)


class EveryPath(EmulatedConformance):
    """What a subclass runs: which kernels, and whether every access to memory is looked at."""

    tuning = NEVER
    scan: Literal["stored", "int8"] = "stored"
    checked = False

    def make(self, rows: Rows) -> CudaScorer:
        return CudaScorer(
            rows, device=EmulatedDevice(checked=self.checked), tuning=self.tuning, scan=self.scan
        )


# Each path runs the whole suite on one row type here; under `-m slow` on all that it reads, and checked.


class TestExactKernel(EveryPath):
    row_types = ("float16",)


class TestTensorCores(EveryPath):
    row_types = ("int8",)
    tuning = ALWAYS


class TestInt8Shadow(EveryPath):
    row_types = ("float32",)
    tuning = ALWAYS
    scan = "int8"


@pytest.mark.slow
class TestExactKernelChecked(EveryPath):
    checked = True


@pytest.mark.slow
class TestTensorCoresChecked(EveryPath):
    tuning = ALWAYS
    checked = True


@pytest.mark.slow
class TestInt8ShadowChecked(EveryPath):
    row_types = ("float32", "float16")
    tuning = ALWAYS
    scan = "int8"
    checked = True
