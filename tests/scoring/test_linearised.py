"""The linearised first stage, with the indexes that it is made for."""

from __future__ import annotations

import numpy as np
import pytest

from cir_infer.errors import ScoringError, UsageError
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.cpu import CpuScorer
from cir_infer.scoring.linearised import (
    LinearisedScorer,
    faiss_candidates,
    linear_queries,
    mean_squares,
    recall,
    usearch_candidates,
)
from tests.scoring.cases import pack, random_terms

faiss = pytest.importorskip("faiss")
usearch_index = pytest.importorskip("usearch.index")


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 64)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def terms() -> QueryTerms:
    return random_terms(np.random.default_rng(1), 20, 2, 64, True, peak=0.3)


def flat(values: np.ndarray) -> object:
    index = faiss.IndexFlatIP(values.shape[1])
    index.add(values)
    return index


def test_a_single_flat_weight_is_no_approximation(values: np.ndarray) -> None:
    terms = random_terms(np.random.default_rng(2), 3, 1, 64, True, peak=0.0)
    rows = Rows.of(values)
    scorer = LinearisedScorer(CpuScorer(rows), rows, faiss_candidates(flat(values)), factor=2)
    for got, expected in zip(scorer.topk(terms, 10), CpuScorer(rows).topk(terms, 10), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("library", ["faiss flat", "faiss hnsw", "usearch"])
def test_an_index_proposes_and_the_scorer_disposes(
    values: np.ndarray, terms: QueryTerms, library: str
) -> None:
    if library == "usearch":
        index = usearch_index.Index(ndim=64, metric="ip", dtype="f32", expansion_search=400)
        index.add(np.arange(len(values)), values)
        candidates = usearch_candidates(index)
    elif library == "faiss hnsw":
        hnsw = faiss.IndexHNSWFlat(64, 32, faiss.METRIC_INNER_PRODUCT)
        hnsw.hnsw.efSearch = 400
        hnsw.add(values)
        candidates = faiss_candidates(hnsw)
    else:
        candidates = faiss_candidates(flat(values))
    rows = Rows.of(values)
    exact = CpuScorer(rows)
    scorer = LinearisedScorer(exact, rows, candidates, factor=8)
    shares = recall(scorer, exact, terms, 10)
    assert shares.shape == (20,)
    assert shares.mean() > 0.9
    got, expected = scorer.topk(terms, 10), exact.topk(terms, 10)
    same = got.rows == expected.rows
    np.testing.assert_array_equal(got.scores[same], expected.scores[same])
    assert (np.diff(got.scores) <= 0).all()
    one = scorer.topk(terms[0], 10)
    np.testing.assert_array_equal(one.rows[0], got.rows[0])


def test_peaked_attention_loses_recall_and_recall_says_so(values: np.ndarray) -> None:
    """The reason why this is an option: the same index, other queries."""
    rows = Rows.of(values)
    peaked = random_terms(np.random.default_rng(3), 20, 2, 64, True, peak=4.0)
    scorer = LinearisedScorer(CpuScorer(rows), rows, faiss_candidates(flat(values)), factor=4)
    assert recall(scorer, CpuScorer(rows), peaked, 10).mean() < 0.9


def test_masks_hold(values: np.ndarray, terms: QueryTerms) -> None:
    allowed = np.random.default_rng(4).random(len(values)) < 0.5
    rows = Rows.of(values)
    scorer = LinearisedScorer(CpuScorer(rows), rows, faiss_candidates(flat(values)))
    got = scorer.topk(terms, 10, pack(allowed))
    assert allowed[got.rows[got.rows >= 0]].all()


def test_an_index_of_other_rows_is_noticed(values: np.ndarray, terms: QueryTerms) -> None:
    rows = Rows.of(values[:100])
    scorer = LinearisedScorer(CpuScorer(rows), rows, faiss_candidates(flat(values)))
    with pytest.raises(ScoringError, match="build it from these rows"):
        scorer.topk(terms, 10)
    with pytest.raises(UsageError, match="factor"):
        LinearisedScorer(CpuScorer(rows), rows, faiss_candidates(flat(values)), factor=0)


def test_the_linear_query_is_the_sum_of_terms_at_the_mean(values: np.ndarray, terms: QueryTerms) -> None:
    squares = mean_squares(Rows.of(values))
    np.testing.assert_allclose(squares, (values.astype(np.float64) ** 2).mean(axis=0))
    v = linear_queries(terms, squares)
    assert terms.weights is not None
    n, w = terms.numerators[0].astype(np.float64), terms.weights[0].astype(np.float64)
    expected = n[0] / np.sqrt(w[0] @ squares) + n[1] / np.sqrt(w[1] @ squares)
    np.testing.assert_allclose(v[0], expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-7)
