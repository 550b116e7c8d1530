"""The native scorer compiled for another machine and run by an emulator, through the same suite.

`make neon-check` sets CIR_CASE_RUNNER to the command that runs kernels/score/case_runner.cpp, e.g.
"qemu-aarch64-static build/neon/cir_score_cases"; without it there is nothing to check here.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pytest

from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.validation import check_query
from tests.other_machine import CaseRunner, command
from tests.scoring.cases import pack, random_terms
from tests.scoring.conformance import ScorerConformance
from tests.scoring.test_tokens import check, items_of

RUNNER = command("CIR_CASE_RUNNER")
if not RUNNER:
    pytest.skip("CIR_CASE_RUNNER is not set; run `make neon-check`", allow_module_level=True)

PRODUCTS = ["fastest", "float32", "int8"]
ROW_TYPES = [np.float32, np.float16, np.int8]


@functools.cache
def runner(instruction_set: str) -> CaseRunner:
    return CaseRunner([*RUNNER, instruction_set])


class EmulatedScorer:
    """Hands each case to the runner and reads the answer back."""

    name = "emulated"

    def __init__(
        self, rows: Rows, instruction_set: str, first_list: int | None, products: str = "fastest"
    ) -> None:
        self._rows = rows
        self._products = PRODUCTS.index(products)
        self._instruction_set = instruction_set
        self._first_list = first_list

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        rows = self._rows
        check_query(terms, k, allow, rows.count, rows.dimension)
        q, j, _ = terms.numerators.shape
        exact_from_int8, threads = self._first_list is not None, 2
        head = [ROW_TYPES.index(rows.dtype.type), rows.dimension, len(rows.blocks), q, j, k]
        head += [
            terms.weights is not None,
            allow is not None,
            exact_from_int8,
            threads,
            self._first_list or 0,
            rows.tokens_per_item if rows.has_tokens else 0,
            self._products,
        ]
        case = [np.array(head, np.int64)]
        for b, block in enumerate(rows.blocks):
            case += [np.array([len(block)], np.int64), block]
            if rows.scales is not None:
                case.append(rows.scales[b])
        case += [array for array in (terms.numerators, terms.weights, allow) if array is not None]
        sizes = [4 * q * k, 8 * q * k, 4 * q * k * j, 4 * q * k * j if rows.has_tokens else 0]
        answer = runner(self._instruction_set).ask(
            b"".join(np.ascontiguousarray(array).tobytes() for array in case), sum(sizes)
        )
        scores, numbers, by_term, tokens = np.split(np.frombuffer(answer, np.uint8), np.cumsum(sizes[:3]))
        return TopK(
            scores.view(np.float32).reshape(q, k),
            numbers.view(np.int64).reshape(q, k),
            by_term.view(np.float32).reshape(q, k, j),
            tokens.view(np.int32).reshape(q, k, j) if rows.has_tokens else None,
        )


class TestNeon(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return EmulatedScorer(rows, "neon", None)


class TestNeonDot(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return EmulatedScorer(rows, "neondot", None, "int8")


class TestNeonExactFromInt8(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return EmulatedScorer(rows, "neon", 3)


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("first_list", [None, 3])
def test_items_of_several_vectors(row_type: str, first_list: int | None) -> None:
    rng = np.random.default_rng(5)
    for m, d in ((1, 16), (3, 40), (33, 24)):
        rows = items_of(rng.standard_normal((50, m, d)), row_type, (20,))
        scorer = EmulatedScorer(rows, "neon", first_list)
        for q, j, weighted in ((1, 1, False), (2, 2, True), (9, 1, False), (9, 2, True)):
            terms = random_terms(rng, q, j, d, weighted)
            check(scorer, rows, terms, 7, pack(rng.random(50) < 0.7))
            check(scorer, rows, terms, 7)
