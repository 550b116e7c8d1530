"""The suite that every scorer passes: the contract, held against the float64 definition.

A backend's test module subclasses `ScorerConformance` under a name that pytest collects:

    class TestMyScorer(ScorerConformance):
        def make(self, rows: Rows) -> Scorer:
            return MyScorer(rows)

Rows, scores and terms must be the definition's to the last bit, in the definition's order: whoever passes
here agrees with every other scorer, whatever the number of queries, rows asked for, blocks, threads or
instruction set.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cir_infer.errors import ScoringError
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.reference import exact_scores

__all__ = ["ScorerConformance", "check_topk", "quantise", "random_terms"]

Array = npt.NDArray[Any]
ROW_TYPES = ("float32", "float16", "int8")


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_terms(
    rng: np.random.Generator, q: int, j: int, d: int, weighted: bool, peak: float = 1.0
) -> QueryTerms:
    """ARTEMIS-like terms: softmax attention a, n = a * a * r / |a * r| and w = a * a, for each j."""
    names = tuple(f"term_{i}" for i in range(j))
    r = rng.standard_normal((q, j, d))
    if not weighted:
        r /= np.linalg.norm(r, axis=-1, keepdims=True)
        return QueryTerms(r.astype(np.float32), None, names)
    a = softmax(peak * rng.standard_normal((q, j, d)))
    n = a * a * r / np.linalg.norm(a * r, axis=-1, keepdims=True)
    return QueryTerms(n.astype(np.float32), (a * a).astype(np.float32), names)


def quantise(values: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rows as int8 with one scale a row (the row's largest magnitude becomes 127)."""
    top = np.abs(values).max(axis=1, initial=0.0)
    scales = np.where(top > 0, top / 127.0, 1.0).astype(np.float32)
    return np.clip(np.rint(values / scales[:, None]), -127, 127).astype(np.int8), scales


def rows_of(values: Array, row_type: str, cuts: Sequence[int] = ()) -> Rows:
    """The values as rows of a type, cut into blocks at the given row numbers (repeats give empty blocks)."""
    edges = [0, *cuts, len(values)]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    if row_type != "int8":
        typed = values.astype(row_type)
        return Rows(tuple(np.ascontiguousarray(typed[s]) for s in spans))
    whole, scales = quantise(values)
    return Rows(
        tuple(np.ascontiguousarray(whole[s]) for s in spans),
        tuple(np.ascontiguousarray(scales[s]) for s in spans),
    )


def pack(allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.packbits(allowed, bitorder="little")


_definitions: dict[bytes, tuple[Array, Array]] = {}
"""Every backend is asked the same cases, and the definition takes longer than their answers."""


def define(terms: QueryTerms, rows: Rows) -> tuple[Array, Array]:
    """Scores (Q, N), NaN for rows that do not rank, and terms (Q, N, J)."""
    digest = hashlib.blake2b(repr((terms.numerators.shape, rows.dtype)).encode())
    for array in (terms.numerators, terms.weights, *rows.blocks, *(rows.scales or ())):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    key = digest.digest()
    if key not in _definitions:
        values = rows.take(np.arange(rows.count))
        scores, by_term = exact_scores(terms, values)
        _definitions[key] = scores, by_term.transpose(0, 2, 1)
    return _definitions[key]


def check_topk(
    got: TopK, terms: QueryTerms, rows: Rows, k: int, allow: npt.NDArray[np.uint8] | None = None
) -> None:
    """Assert that an answer is the definition's."""
    n, (q, j, _) = rows.count, terms.numerators.shape
    assert got.scores.shape == (q, k) and got.scores.dtype == np.float32
    assert got.rows.shape == (q, k) and got.rows.dtype == np.int64
    assert got.terms.shape == (q, k, j) and got.terms.dtype == np.float32

    scores, by_term = define(terms, rows)
    if allow is not None:
        allowed = np.unpackbits(allow, count=n, bitorder="little").astype(bool)
        scores = np.where(allowed, scores, np.nan)
    for i in range(q):
        order = np.lexsort((np.arange(n), -scores[i]))[:k]
        order = order[~np.isnan(scores[i, order])]
        found = len(order)
        np.testing.assert_array_equal(got.rows[i, :found], order, "not the definition's rows")
        np.testing.assert_array_equal(got.scores[i, :found], scores[i, order], "not the definition's scores")
        np.testing.assert_array_equal(got.terms[i, :found], by_term[i, order], "not the definition's terms")
        assert (got.rows[i, found:] == -1).all(), "rows beyond those that qualify must be -1"
        assert np.isneginf(got.scores[i, found:]).all(), "scores beyond the rows that qualify must be -inf"
        assert np.isnan(got.terms[i, found:]).all(), "terms beyond the rows that qualify must be NaN"


def near(rng: np.random.Generator, row: Array, count: int, row_type: str, nudges: int = 3) -> Array:
    """Rows that differ from one by a unit in the last place of a few values, as float64."""
    typed = np.repeat(np.asarray(row)[None], count, axis=0)
    if row_type == "int8":
        whole, scales = quantise(typed[:1])
        typed = np.repeat(whole, count, axis=0).astype(np.float64)
        steps = np.ones_like(typed)
    else:
        typed = typed.astype(row_type)
        steps = np.spacing(np.abs(typed)).astype(np.float64)
        typed = typed.astype(np.float64)
        scales = np.ones(1, np.float32)
    for _ in range(nudges):
        at = rng.integers(0, typed.shape[1], count)
        typed[np.arange(count), at] += rng.choice([-1, 0, 1], count) * steps[np.arange(count), at]
    return typed * float(scales[0])


class ScorerConformance:
    """Subclass as `Test...`, give `make`, and narrow `row_types` where a backend reads fewer."""

    row_types: tuple[str, ...] = ROW_TYPES
    examples: int = 40
    """How many random cases the property test draws."""
    crowd: int = 3000
    """Rows that stand closer together than float32 sums can tell apart."""
    widest: int = 512
    """Values of the widest random rows in every combination; `test_any_dimension` goes beyond."""

    def make(self, rows: Rows) -> Scorer:
        raise NotImplementedError

    def check(
        self, rows: Rows, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None
    ) -> TopK:
        got = self.make(rows).topk(terms, k, allow)
        check_topk(got, terms, rows, k, allow)
        return got

    @pytest.fixture(params=ROW_TYPES)
    def row_type(self, request: pytest.FixtureRequest) -> str:
        if request.param not in self.row_types:
            pytest.skip(f"this scorer does not read {request.param} rows")
        return str(request.param)

    # ---- random -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
    @pytest.mark.parametrize("j", [1, 2, 3, 5])
    @pytest.mark.parametrize("d", [1, 7, 16, 40, 512])
    def test_random_rows(self, row_type: str, d: int, j: int, weighted: bool) -> None:
        d = min(d, self.widest)
        rng = np.random.default_rng(d * 10 + j)
        rows = rows_of(rng.standard_normal((203, d)), row_type)
        for q in (1, 3, 9):
            self.check(rows, random_terms(rng, q, j, d, weighted), 10)

    @pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
    @pytest.mark.parametrize("q", [2, 4, 5, 8, 16, 31, 64, 130])
    def test_batches_of_any_size(self, row_type: str, q: int, weighted: bool) -> None:
        rng = np.random.default_rng(q)
        rows = rows_of(rng.standard_normal((517, 96)), row_type, cuts=[100, 101])
        self.check(rows, random_terms(rng, q, 2, 96, weighted), 7)

    @pytest.mark.parametrize("d", [15, 17, 31, 33, 63, 64, 65, 127, 640, 1027])
    def test_any_dimension(self, row_type: str, d: int) -> None:
        rng = np.random.default_rng(d)
        rows = rows_of(rng.standard_normal((71, d)), row_type)
        self.check(rows, random_terms(rng, 2, 2, d, True), 5)
        self.check(rows, random_terms(rng, 33, 2, d, True), 5)
        self.check(rows, random_terms(rng, 2, 1, d, False), 5)

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 15, 16, 17, 100])
    def test_few_rows_and_k_up_to_and_beyond_all_of_them(self, row_type: str, n: int) -> None:
        rng = np.random.default_rng(n)
        rows = rows_of(rng.standard_normal((n, 48)), row_type)
        for k in sorted({1, n, n + 5}):
            for q in (1, 20):
                self.check(rows, random_terms(rng, q, 2, 48, True), k)

    def test_many_rows(self, row_type: str) -> None:
        rng = np.random.default_rng(5)
        rows = rows_of(rng.standard_normal((8_000, 64)), row_type, cuts=[3_001, 3_003])
        for q, k in ((1, 50), (3, 1000), (20, 50)):
            self.check(rows, random_terms(rng, q, 2, 64, True), k)
        self.check(rows, random_terms(rng, 1, 1, 64, False), 8_000)

    def test_rows_that_get_better_and_better(self, row_type: str) -> None:
        """The running threshold rises with every row: the worst case for a top-k inside the scan."""
        rng = np.random.default_rng(6)
        terms = random_terms(rng, 2, 1, 32, False)
        away = rng.standard_normal((3000, 32)) * 0.05
        values = np.linspace(-1, 1, 3000)[:, None] * terms.numerators[0, 0].astype(np.float64) + away
        self.check(rows_of(values, row_type), terms, 64)
        self.check(rows_of(values[::-1], row_type), terms, 64)

    # ---- blocks and masks ---------------------------------------------------------------------------

    @pytest.mark.parametrize("cuts", [[0], [50, 50, 50], [1, 2, 3], [100], [0, 0, 33, 100, 100]])
    def test_blocks_are_one_gallery(self, row_type: str, cuts: list[int]) -> None:
        rng = np.random.default_rng(9)
        values = rng.standard_normal((100, 64))
        for q in (1, 24):
            terms = random_terms(rng, q, 2, 64, True)
            whole = self.check(rows_of(values, row_type), terms, 12)
            parts = self.check(rows_of(values, row_type, cuts), terms, 12)
            np.testing.assert_array_equal(parts.rows, whole.rows)
            np.testing.assert_array_equal(parts.scores, whole.scores)

    def test_no_rows_at_all(self, row_type: str) -> None:
        rows = rows_of(np.empty((0, 32)), row_type, cuts=[0])
        self.check(rows, random_terms(np.random.default_rng(0), 2, 2, 32, True), 3)

    def test_no_queries(self, row_type: str) -> None:
        rng = np.random.default_rng(0)
        got = self.make(rows_of(rng.standard_normal((9, 32)), row_type)).topk(
            random_terms(rng, 0, 2, 32, True), 3
        )
        assert got.scores.shape == (0, 3) and got.rows.shape == (0, 3) and got.terms.shape == (0, 3, 2)

    @pytest.mark.parametrize("share", [0.0, 0.003, 0.5, 1.0])
    def test_only_allowed_rows(self, row_type: str, share: float) -> None:
        rng = np.random.default_rng(int(share * 1000))
        rows = rows_of(rng.standard_normal((1003, 32)), row_type, cuts=[5, 700])
        allow = pack(rng.random(1003) < share)
        for q in (1, 3, 40):
            self.check(rows, random_terms(rng, q, 2, 32, True), 20, allow)

    def test_mask_bits_beyond_the_last_row_mean_nothing(self, row_type: str) -> None:
        rng = np.random.default_rng(4)
        rows = rows_of(rng.standard_normal((13, 32)), row_type)
        allow = np.full(2, 255, np.uint8)
        got = self.check(rows, random_terms(rng, 2, 2, 32, True), 16, allow)
        assert ((got.rows >= 0).sum(axis=1) == 13).all()

    # ---- ties ---------------------------------------------------------------------------------------

    @pytest.mark.parametrize("q", [1, 2, 24])
    def test_duplicates_go_by_row_number(self, row_type: str, q: int) -> None:
        rng = np.random.default_rng(q)
        values = rng.standard_normal((7, 80))[rng.integers(0, 7, 1501)]
        rows = rows_of(values, row_type, cuts=[333, 1000])
        allow = pack(rng.random(1501) < 0.7)
        for k in (1, 10, 300, 1501):
            self.check(rows, random_terms(rng, q, 2, 80, True), k)
            self.check(rows, random_terms(rng, q, 1, 80, False), k, allow)

    @pytest.mark.parametrize("q", [1, 24])
    def test_all_rows_are_the_same(self, row_type: str, q: int) -> None:
        rng = np.random.default_rng(q)
        values = np.repeat(rng.standard_normal((1, 100)), 1500, axis=0)
        got = self.check(rows_of(values, row_type, cuts=[501]), random_terms(rng, q, 2, 100, True), 40)
        np.testing.assert_array_equal(got.rows, np.broadcast_to(np.arange(40), (q, 40)))

    # ---- adversarial values -------------------------------------------------------------------------

    @pytest.mark.parametrize("peak", [5.0, 20.0, 60.0])
    def test_peaked_attention(self, row_type: str, peak: float) -> None:
        rng = np.random.default_rng(int(peak))
        rows = rows_of(rng.standard_normal((300, 512)), row_type)
        for q in (1, 3, 24):
            self.check(rows, random_terms(rng, q, 2, 512, True, peak), 10)

    def test_weights_that_are_zero_almost_everywhere(self, row_type: str) -> None:
        rng = np.random.default_rng(3)
        base = random_terms(rng, 18, 2, 64, True)
        assert base.weights is not None
        keep = rng.random(base.weights.shape) < 0.05
        keep[3] = False
        terms = QueryTerms(base.numerators * keep, base.weights * keep, base.names)
        values = rng.standard_normal((300, 64)) * (rng.random((300, 64)) < 0.2)
        self.check(rows_of(values, row_type), terms, 300)
        self.check(rows_of(values, row_type), terms[:1], 300)

    def test_a_term_without_norm_is_zero_even_with_a_numerator(self, row_type: str) -> None:
        terms = QueryTerms(
            np.ones((1, 2, 32), np.float32),
            np.stack([np.zeros(32), np.ones(32)])[None].astype(np.float32),
            ("a", "b"),
        )
        values = np.random.default_rng(0).standard_normal((20, 32))
        got = self.check(rows_of(values, row_type), terms, 20)
        assert (got.terms[:, :, 0] == 0).all()

    def test_zero_rows_score_zero(self, row_type: str) -> None:
        rng = np.random.default_rng(1)
        values = rng.standard_normal((200, 48))
        values[rng.random(200) < 0.3] = 0
        for q in (1, 24):
            self.check(rows_of(values, row_type), random_terms(rng, q, 2, 48, True), 200)
            self.check(rows_of(values, row_type), random_terms(rng, q, 1, 48, False), 200)
            got = self.check(rows_of(values * 0, row_type), random_terms(rng, q, 2, 48, True), 30)
            assert (got.scores == 0).all()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_rows_with_nan_or_infinity_never_rank(self, row_type: str, bad: float) -> None:
        if row_type == "int8":
            pytest.skip("int8 holds no NaN and no infinity")
        rng = np.random.default_rng(1)
        values = rng.standard_normal((150, 40))
        values[rng.random(150) < 0.4, rng.integers(0, 40)] = bad
        values[7] = bad
        for q in (1, 24):
            for k in (5, 150):
                self.check(rows_of(values, row_type), random_terms(rng, q, 2, 40, True), k)
                self.check(rows_of(values, row_type), random_terms(rng, q, 1, 40, False), k)

    def test_infinity_where_the_query_is_zero_does_not_rank_either(self, row_type: str) -> None:
        if row_type == "int8":
            pytest.skip("int8 holds no NaN and no infinity")
        rng = np.random.default_rng(2)
        values = rng.standard_normal((40, 16))
        values[::3, 5] = np.inf
        n, w = np.ones((1, 1, 16), np.float32), np.ones((1, 1, 16), np.float32)
        n[..., 5] = w[..., 5] = 0
        self.check(rows_of(values, row_type), QueryTerms(n, w, ("a",)), 40)
        self.check(rows_of(values, row_type), QueryTerms(n, None, ("a",)), 40)

    @pytest.mark.parametrize("q", [1, 24])
    def test_rows_of_huge_and_tiny_scale(self, row_type: str, q: int) -> None:
        """A weighted score does not depend on a row's scale, however far float32 squares overflow."""
        rng = np.random.default_rng(q)
        span = {"float32": (-44.0, 37.0), "float16": (-7.0, 4.0), "int8": (-30.0, 30.0)}[row_type]
        values = rng.uniform(-1, 1, (400, 64)) * 10 ** rng.uniform(*span, (400, 1))
        rows = rows_of(values, row_type, cuts=[77])
        self.check(rows, random_terms(rng, q, 2, 64, True), 60)
        self.check(rows, random_terms(rng, q, 2, 64, True, peak=20), 400)

    def test_rows_whose_values_span_many_magnitudes(self, row_type: str) -> None:
        if row_type == "int8":
            pytest.skip("int8 rows span two magnitudes")
        rng = np.random.default_rng(8)
        span = (-38, 37) if row_type == "float32" else (-7, 4)
        values = rng.choice([-1, 1], (200, 64)) * 10 ** rng.uniform(*span, (200, 64))
        for q in (1, 24):
            self.check(rows_of(values, row_type), random_terms(rng, q, 2, 64, True, peak=10), 200)

    @pytest.mark.parametrize("scale", [2.0**-60, 2.0**-20, 2.0**20, 2.0**60])
    def test_terms_of_any_scale(self, row_type: str, scale: float) -> None:
        """A factor in n_j and sqrt(w_j) together leaves the score alone."""
        rng = np.random.default_rng(3)
        rows = rows_of(rng.standard_normal((200, 64)), row_type)
        for q in (1, 24):
            terms = random_terms(rng, q, 2, 64, True)
            assert terms.weights is not None
            n, w = terms.numerators.copy(), terms.weights.copy()
            n[:, 0] *= np.float32(scale)
            with np.errstate(over="ignore", under="ignore"):
                w[:, 0] *= np.float32(scale) * np.float32(scale)
            if not np.isfinite(w).all() or scale == 2.0**-60:
                w = terms.weights  # no longer the same score, and still the definition's
            self.check(rows, QueryTerms(n, w, terms.names), 20)

    @pytest.mark.parametrize("size", [1e-30, 1e30])
    def test_plain_products_of_tiny_and_huge_queries(self, row_type: str, size: float) -> None:
        rng = np.random.default_rng(4)
        rows = rows_of(rng.standard_normal((200, 64)), row_type)
        for q in (1, 24):
            n = (rng.standard_normal((q, 1, 64)) * size).astype(np.float32)
            self.check(rows, QueryTerms(n, None, ("a",)), 20)

    def test_a_score_that_float32_cannot_hold_does_not_rank(self, row_type: str) -> None:
        n = np.full((1, 1, 16), 3e38, np.float32)
        values = np.linspace(-1, 1, 12)[:, None] * np.ones((1, 16))
        values[5] = 0
        values[6] = 1e-3
        self.check(rows_of(values, row_type), QueryTerms(n, None, ("a",)), 12)

    def test_sums_that_overflow_on_the_way_and_cancel(self, row_type: str) -> None:
        if row_type != "float32":
            pytest.skip("only float32 rows reach that far")
        values = np.tile(np.array([3e38, -3e38]), (10, 16)) * np.linspace(0.1, 1, 10)[:, None]
        values[:, 0] *= 0.9
        n = np.ones((1, 1, 32), np.float32) * 3
        self.check(rows_of(values, row_type), QueryTerms(n, None, ("a",)), 10)
        self.check(rows_of(values, row_type), QueryTerms(n, n, ("a",)), 10)

    @pytest.mark.parametrize("q", [1, 9])
    def test_terms_whose_partial_sums_leave_float32(self, row_type: str, q: int) -> None:
        """-2e38 - 2e38 + 2e38 is -2e38, and ranks."""
        size = 1e4 if row_type == "float16" else 1e18
        values = np.full((40, 32), size / 100) * np.linspace(1, 2, 40)[:, None]
        values[:, :2] = size
        n = np.zeros((q, 3, 32), np.float32)
        n[:, :, :2] = (np.array([-1, -1, 1]) * 1e38 / size)[:, None]
        self.check(rows_of(values, row_type), QueryTerms(n, None, ("a", "b", "c")), 40)
        n[:, :, :2] = (np.array([-1, -1, 1]) * 2e38)[:, None]
        self.check(rows_of(values, row_type), QueryTerms(n, np.ones_like(n), ("a", "b", "c")), 40)

    def test_denormal_rows(self, row_type: str) -> None:
        if row_type == "int8":
            pytest.skip("int8 has no denormals")
        rng = np.random.default_rng(5)
        size = 1e-40 if row_type == "float32" else 4e-7
        values = rng.standard_normal((200, 48)) * size
        for q in (1, 24):
            self.check(rows_of(values, row_type), random_terms(rng, q, 2, 48, True), 50)

    def test_extreme_integers(self) -> None:
        if "int8" not in self.row_types:
            pytest.skip("this scorer does not read int8 rows")
        rng = np.random.default_rng(6)
        values = rng.choice(np.array([-128, -127, 0, 127], np.int8), (300, 512))
        scales = np.float32(10) ** rng.uniform(-3, 3, 300).astype(np.float32)
        rows = Rows.of(values, scales.astype(np.float32))
        for q in (1, 24):
            self.check(rows, random_terms(rng, q, 2, 512, True), 30)
            self.check(rows, random_terms(rng, q, 1, 512, False), 30)

    # ---- rows that rounding cannot tell apart ---------------------------------------------------------

    @pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
    @pytest.mark.parametrize("q", [1, 2, 6, 24])
    def test_a_crowd_one_unit_in_the_last_place_apart(self, row_type: str, q: int, weighted: bool) -> None:
        """The k-th place lies among them, whatever k: only one way to round gives one answer."""
        rng = np.random.default_rng(q)
        terms = random_terms(rng, q, 2, 96, weighted)
        away = rng.standard_normal((self.crowd // 4, 96))
        crowd = near(rng, terms.numerators[0].sum(axis=0) * 30, self.crowd, row_type)
        values = np.concatenate([away, crowd])[rng.permutation(len(away) + len(crowd))]
        rows = rows_of(values, row_type, cuts=[len(values) // 3])
        scorer = self.make(rows)
        for k in (1, 20, 300):
            check_topk(scorer.topk(terms, k), terms, rows, k)
        allow = pack(rng.random(len(values)) < 0.5)
        check_topk(scorer.topk(terms, 20, allow), terms, rows, 20, allow)
        # Now the crowd is worst, and its scores are negative.
        opposite = QueryTerms(-terms.numerators, terms.weights, terms.names)
        check_topk(scorer.topk(opposite, len(away) + 20), opposite, rows, len(away) + 20)

    def test_a_query_has_one_answer_alone_and_in_any_company(self, row_type: str) -> None:
        rng = np.random.default_rng(11)
        terms = random_terms(rng, 33, 2, 80, True)
        values = near(rng, rng.standard_normal(80), self.crowd, row_type)
        scorer = self.make(rows_of(values, row_type))
        whole = scorer.topk(terms, 40)
        for size in (1, 2, 5, 6, 7, 17):
            for start in (0, 33 - size):
                part = scorer.topk(terms[start : start + size], 40)
                for got, expected in zip(part[:3], whole[:3], strict=True):
                    np.testing.assert_array_equal(got, expected[start : start + size])

    @pytest.mark.parametrize("q", [1, 7])
    def test_terms_that_cancel(self, row_type: str, q: int) -> None:
        """What is left of two large terms is smaller than what float32 loses of each."""
        rng = np.random.default_rng(q)
        base = random_terms(rng, q, 2, 64, True)
        assert base.weights is not None
        n, w = base.numerators.copy(), base.weights.copy()
        n[:, 1], w[:, 1] = -n[:, 0], w[:, 0]
        n[:, 1, :3] *= np.float32(1 + 2**-20)
        rows = rows_of(rng.standard_normal((self.crowd // 3, 64)), row_type)
        self.check(rows, QueryTerms(n, w, base.names), 30)
        self.check(rows, QueryTerms(n, None, base.names), 30)

    @pytest.mark.parametrize("q", [1, 7])
    def test_numerators_without_a_weight(self, row_type: str, q: int) -> None:
        """No norm bounds such a term, and one value of a row may outweigh all others."""
        rng = np.random.default_rng(q)
        base = random_terms(rng, q, 2, 40, True)
        assert base.weights is not None
        w = base.weights.copy()
        w[:, 1, ::2] = 0
        values = rng.standard_normal((self.crowd // 3, 40))
        values[:, ::2] *= 10.0 ** rng.integers(0, 3, (len(values), 20))
        self.check(rows_of(values, row_type), QueryTerms(base.numerators, w, base.names), 30)

    @pytest.mark.parametrize("q", [1, 7])
    def test_plain_products_of_rows_of_any_length(self, row_type: str, q: int) -> None:
        """Rounding grows with a row: a long one must not hide what short ones are worth, nor they it."""
        rng = np.random.default_rng(q)
        terms = random_terms(rng, q, 1, 64, False)
        values = near(rng, terms.numerators[0, 0] * 20, self.crowd // 2, row_type)
        lengths = {"float32": (1e6, 1e19), "float16": (100.0, 4000.0), "int8": (1e6, 1e15)}[row_type]
        for i, length in enumerate(lengths):
            long = rng.standard_normal(64)
            long -= terms.numerators[0, 0] * (long @ terms.numerators[0, 0])  # a score of little but rounding
            values[7 + 100 * i] = long / np.abs(long).max() * length
        self.check(rows_of(values, row_type), terms, 30)

    def test_denormal_rows_close_together(self, row_type: str) -> None:
        if row_type != "float32":
            pytest.skip("only float32 rows are so small")
        rng = np.random.default_rng(12)
        values = near(rng, rng.standard_normal(40) * 1e-42, self.crowd // 2, row_type)
        for q in (1, 7):
            self.check(rows_of(values, row_type), random_terms(rng, q, 2, 40, True), 30)
            self.check(rows_of(values, row_type), random_terms(rng, q, 1, 40, False), 30)

    def test_scores_below_what_float32_holds(self, row_type: str) -> None:
        """Scores round to denormals, or to 0 and then go by row number."""
        rng = np.random.default_rng(13)
        rows = rows_of(rng.standard_normal((self.crowd // 3, 40)), row_type)
        for q in (1, 7):
            for size in (1e-44, 1e-39):
                base = random_terms(rng, q, 2, 40, True)
                n = (base.numerators / np.abs(base.numerators).max() * size).astype(np.float32)
                self.check(rows, QueryTerms(n, np.ones_like(n), base.names), 30)
                self.check(rows, QueryTerms(n, None, base.names), 30)

    @pytest.mark.parametrize("q", [1, 7])
    def test_scales_of_any_kind(self, q: int) -> None:
        """Scales are a caller's: negative ones turn a row around, and what is not finite is no row."""
        if "int8" not in self.row_types:
            pytest.skip("this scorer does not read int8 rows")
        rng = np.random.default_rng(q)
        values = rng.integers(-127, 128, (400, 40)).astype(np.int8)
        scales = rng.uniform(0.1, 1, 400).astype(np.float32)
        odd = np.array([0, -0.0, -1, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 2e36], np.float32)
        scales[rng.permutation(400)[:100]] = np.tile(odd, 10)
        rows = Rows.of(values, scales)
        self.check(rows, random_terms(rng, q, 2, 40, True), 50)
        self.check(rows, random_terms(rng, q, 1, 40, False), 50)
        self.check(rows, random_terms(rng, q, 2, 40, True), 400)

    # ---- property -----------------------------------------------------------------------------------

    def test_any_case_hypothesis_can_think_of(self, row_type: str) -> None:
        @settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            seed=st.integers(0, 2**32 - 1),
            n=st.integers(0, 130),
            d=st.integers(1, 150),
            j=st.integers(1, 4),
            q=st.integers(1, 40),
            k=st.integers(1, 140),
            weighted=st.booleans(),
            peak=st.sampled_from([0.0, 1.0, 8.0, 30.0]),
            kinds=st.integers(1, 130),
            spread=st.sampled_from([0.0, 1.0, 6.0]),
            masked=st.booleans(),
            cuts=st.lists(st.integers(0, 130), max_size=4),
        )
        def run(
            seed: int, n: int, d: int, j: int, q: int, k: int, weighted: bool, peak: float, kinds: int,
            spread: float, masked: bool, cuts: list[int],
        ) -> None:  # fmt: skip
            rng = np.random.default_rng(seed)
            values = rng.standard_normal((kinds, d)) * 10 ** (spread * rng.uniform(-1, 0.5, (kinds, 1)))
            values *= rng.random((kinds, 1)) > 0.05
            values = values[rng.integers(0, kinds, n)]
            rows = rows_of(values, row_type, sorted(min(c, n) for c in cuts))
            allow = pack(rng.random(n) < 0.6) if masked else None
            self.check(rows, random_terms(rng, q, j, d, weighted, peak), k, allow)

        run()

    # ---- behaviour ----------------------------------------------------------------------------------

    def test_the_same_question_has_the_same_answer(self, row_type: str) -> None:
        rng = np.random.default_rng(1)
        scorer = self.make(rows_of(rng.standard_normal((3000, 64)), row_type))
        for q in (1, 32):
            terms = random_terms(rng, q, 2, 64, True)
            first = scorer.topk(terms, 20)
            for _ in range(3):
                again = scorer.topk(terms, 20)
                for a, b in zip(first, again, strict=True):
                    np.testing.assert_array_equal(a, b)

    def test_several_threads_may_ask_at_once(self, row_type: str) -> None:
        rng = np.random.default_rng(2)
        scorer = self.make(rows_of(rng.standard_normal((2000, 64)), row_type))
        asked = [random_terms(rng, q, 2, 64, True) for q in (1, 2, 16, 40)]
        alone = [scorer.topk(t, 15) for t in asked]
        answers: list[list[TopK]] = [[] for _ in asked]

        def ask(i: int) -> None:
            for _ in range(5):
                answers[i].append(scorer.topk(asked[i], 15))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for expected, got in zip(alone, answers, strict=True):
            assert len(got) == 5
            for answer in got:
                np.testing.assert_array_equal(answer.rows, expected.rows)
                np.testing.assert_array_equal(answer.scores, expected.scores)

    @pytest.mark.parametrize(
        "k",
        [0, -1, True, 1.5, np.nan, "5", None, 2**62, 2**63, 2**64, 10**4000, np.int64(2**62), np.bool_(True)],
    )
    def test_k_must_be_a_positive_whole_number_of_rows_that_fit_into_memory(self, k: Any) -> None:
        rng = np.random.default_rng(0)
        scorer = self.make(rows_of(rng.standard_normal((5, 8)), self.row_types[0]))
        for q in (0, 1, 4, 16):
            with pytest.raises(ScoringError, match=r"k (is|=)") as raised:
                scorer.topk(random_terms(rng, q, 1, 8, True), k)
            assert len(str(raised.value)) < 300

    @pytest.mark.parametrize("k", [100, 5000])
    def test_k_far_beyond_the_rows(self, k: int) -> None:
        rng = np.random.default_rng(0)
        rows = rows_of(rng.standard_normal((5, 8)), self.row_types[0])
        for q in (1, 7):
            self.check(rows, random_terms(rng, q, 2, 8, True), k)

    def test_dimensions_must_agree(self) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(ScoringError, match="dimensions"):
            self.make(rows_of(rng.standard_normal((5, 8)), self.row_types[0])).topk(
                random_terms(rng, 1, 1, 9, True), 2
            )

    @pytest.mark.parametrize(
        "mask", [np.zeros(2, np.uint8), np.zeros(1, bool), np.zeros((1, 1), np.uint8), [255], b"x", 255]
    )
    def test_the_mask_must_fit(self, mask: Any) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(ScoringError, match="mask"):
            self.make(rows_of(rng.standard_normal((5, 8)), self.row_types[0])).topk(
                random_terms(rng, 1, 1, 8, True), 2, mask
            )
