"""The definition itself: it passes the suite that it rules, and agrees with the authors' formula."""

from __future__ import annotations

import numpy as np

from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import ReferenceScorer, exact_item_scores, term_scores
from tests.scoring.cases import softmax
from tests.scoring.conformance import ScorerConformance


class TestReferenceScorer(ScorerConformance):
    def make(self, rows: Rows) -> ReferenceScorer:
        return ReferenceScorer(rows)


def test_terms_are_the_formula_of_the_paper() -> None:
    """IS = <l2(a r), l2(a t)> and EM = <l2(T m), l2(b t)> (Delmas et al., ICLR 2022, eq. 1, 2, 4)."""
    rng = np.random.default_rng(0)
    r, tm, t = rng.standard_normal(64), rng.standard_normal(64), rng.standard_normal((50, 64))
    a, b = softmax(rng.standard_normal(64)), softmax(rng.standard_normal(64))

    def l2(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    implicit = l2(a * t) @ l2(a * r)
    explicit = l2(b * t) @ l2(tm)
    n = np.stack([a * a * r / np.linalg.norm(a * r), b * l2(tm)])[None].astype(np.float32)
    w = np.stack([a * a, b * b])[None].astype(np.float32)
    got = ReferenceScorer(Rows.of(t.astype(np.float32))).topk(QueryTerms(n, w, ("is", "em")), 50)
    order = got.rows[0]
    assert sorted(order) == list(range(50))
    np.testing.assert_allclose(got.terms[0, :, 0], implicit[order], atol=1e-6)
    np.testing.assert_allclose(got.terms[0, :, 1], explicit[order], atol=1e-6)
    np.testing.assert_allclose(got.scores[0], (implicit + explicit)[order], atol=1e-6)


def test_terms_of_an_item_are_its_vectors_largest() -> None:
    random = np.random.default_rng(4)
    items = random.normal(size=(7, 3, 5)).astype(np.float32)
    items[2, 1, 0] = np.nan
    numerators = random.normal(size=(2, 2, 5)).astype(np.float32)
    terms = QueryTerms(numerators, np.abs(numerators), ("a", "b"))
    found = term_scores(terms, items.astype(np.float64))
    assert np.isnan(found[:, :, 2]).all()
    _, expected, _ = exact_item_scores(terms, items)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
