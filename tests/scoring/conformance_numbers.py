"""What every scorer is asked, and the part of the suite that is about numbers: scales, rounding, overflow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK
from tests.scoring.cases import (
    ROW_TYPES,
    check_topk,
    near,
    pack,
    random_terms,
    rows_of,
)


class NumbersConformance:
    """What a scorer is asked, and rows and terms whose values are hard."""

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
