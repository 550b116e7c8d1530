"""A sample foretells what the best of a batch reach: answers stay the same, and what it misleads is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cir_infer.scoring import _kernels
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.cpu import CpuScorer
from tests.scoring.cases import random_terms

if not _kernels.byte_instruction_sets():
    pytest.skip("no instruction set of this machine multiplies bytes", allow_module_level=True)


def sampled(rows: int) -> npt.NDArray[np.bool_]:
    """Which rows a batch looks at first (kernels/score/foresight.h)."""
    row = np.arange(rows, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return (row // np.uint64(8) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(61) == row % np.uint64(8)


def same_as_in_float32(scorer: CpuScorer, values: Any, terms: QueryTerms, k: int) -> None:
    expected = CpuScorer(Rows.of(values), threads=1, products="float32").topk(terms, k)
    for a, b in zip(scorer.topk(terms, k), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("queries", [64, 300])
def test_a_sample_that_holds_all_of_the_best_promises_too_much_and_is_found_out(
    queries: int, threads: int
) -> None:
    rng = np.random.default_rng(10)
    terms = random_terms(rng, queries, 2, 96, False)
    values = 0.01 * rng.standard_normal((2_000, 96)).astype(np.float32)
    # A direction that all queries share: of the 300 best of each, 250 are in the sample.
    terms = QueryTerms(terms.numerators + np.float32(1), None, terms.names)
    values[sampled(2_000)] += 1
    scorer = CpuScorer(Rows.of(values), threads=threads, products="int8")
    same_as_in_float32(scorer, values, terms, 300)
    # After a block of queries of which so many were misled no further is.
    assert min(queries, 128) <= scorer.statistics.again <= 128 * threads


def test_one_query_that_a_sample_misleads_is_answered_again_alone() -> None:
    rng = np.random.default_rng(11)
    terms = random_terms(rng, 64, 1, 96, False)
    values = rng.standard_normal((2_000, 96)).astype(np.float32)
    values[sampled(2_000)] += 0.7 * terms.numerators[5] / np.linalg.norm(terms.numerators[5])
    scorer = CpuScorer(Rows.of(values), threads=1)
    same_as_in_float32(scorer, values, terms, 100)
    assert scorer.statistics.again == 1
    assert scorer.statistics.bounded + scorer.statistics.multiplied == 64 * 2_000


@pytest.mark.parametrize("threads", [1, 3])
def test_lists_that_are_looked_at_now_and_then_hold_the_same(threads: int) -> None:
    rng = np.random.default_rng(15)
    terms = random_terms(rng, 12, 2, 64, True, 0.5)
    values = rng.standard_normal((9_000, 64)).astype(np.float32)
    values[rng.permutation(9_000)[:4_000]] = values[7]
    for k in (2_048, 2_100, 4_096, 5_000, 8_999):
        same_as_in_float32(CpuScorer(Rows.of(values), threads=threads, products="int8"), values, terms, k)


def test_where_blocks_of_queries_have_to_be_answered_again_a_sample_is_drawn_no_more() -> None:
    rng = np.random.default_rng(14)
    terms = random_terms(rng, 640, 1, 96, False)
    # Twelve queries of each block of 128 share a direction, unknown to the others; the sample lies there.
    shared = np.arange(640) % 128 < 12
    numerators = terms.numerators - terms.numerators.mean(2, keepdims=True)
    numerators[shared] += 3
    terms = QueryTerms(numerators, None, terms.names)
    values = rng.standard_normal((2_000, 96)).astype(np.float32)
    values[sampled(2_000)] += 0.3
    scorer = CpuScorer(Rows.of(values), threads=1, products="int8")
    same_as_in_float32(scorer, values, terms, 100)
    assert scorer.statistics.again == 12


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_of_equal_rows_a_sample_keeps_all_that_may_be_in_the_answer(masked: bool, threads: int) -> None:
    rng = np.random.default_rng(13)
    terms = random_terms(rng, 64, 2, 96, False)
    # Far more equal rows than a list has room for; the first of them, which win, are all in the sample.
    row = np.arange(6_000)
    best = np.where(row < 3_000, sampled(6_000), ~sampled(6_000))
    values = np.ones((6_000, 96), np.float32)
    terms = QueryTerms(np.abs(terms.numerators), None, terms.names)
    if not masked:
        values[~best] = -1
    allow = np.packbits(best, bitorder="little") if masked else None
    for k in (10, 50, 200):
        scorer = CpuScorer(Rows.of(values), threads=threads, products="int8")
        answer = scorer.topk(terms, k, allow)
        np.testing.assert_array_equal(answer.rows, np.tile(np.flatnonzero(best)[:k], (64, 1)))
        assert scorer.statistics.again == 0


@pytest.mark.parametrize("order", ["any", "ascending", "descending", "of period 8", "in clusters"])
def test_what_a_sample_promises_holds_in_whatever_order_rows_come(order: str) -> None:
    rng = np.random.default_rng(12)
    terms = random_terms(rng, 64, 2, 96, True, 0.5)
    values = rng.standard_normal((3_000, 96)).astype(np.float32)
    if order in ("ascending", "descending"):
        by_one = CpuScorer(Rows.of(values), threads=1).topk(terms, 3_000).rows[0]
        values = values[by_one if order == "descending" else by_one[::-1]]
    elif order == "of period 8":
        values[::8] += terms.numerators[:, 0].mean(0) * 20
    elif order == "in clusters":
        values += np.repeat(rng.standard_normal((30, 96)), 100, 0).astype(np.float32)
    scorer = CpuScorer(Rows.of(values), threads=1)
    same_as_in_float32(scorer, values, terms, 50)
    assert scorer.statistics.again <= 1
