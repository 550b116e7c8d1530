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

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import ScoringError
from cir_infer.scoring.contract import TopK
from tests.scoring.cases import (
    pack,
    random_terms,
    rows_of,
)
from tests.scoring.conformance_numbers import NumbersConformance

SHAPES = [*((d, 2) for d in (1, 7, 16, 40, 512)), *((d, j) for d in (7, 512) for j in (1, 3, 5))]
"""Values of a row and terms: each number of values with two terms, each number of terms over few and many."""


class ScorerConformance(NumbersConformance):
    """Subclass as `Test...`, give `make`, and narrow `row_types` where a backend reads fewer."""

    # ---- random -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
    @pytest.mark.parametrize(("d", "j"), SHAPES)
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

    # ---- property -----------------------------------------------------------------------------------

    def test_any_case_hypothesis_can_think_of(self, row_type: str) -> None:
        @settings(max_examples=self.examples)
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
