"""Items of several vectors: every scorer against the definition, to the last bit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import ScoringError, UsageError
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import MOST_TOKENS, QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.cpu import CpuScorer, Int8Scorer, instruction_sets
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from cir_infer.scoring.grouped import GroupedScorer
from cir_infer.scoring.linearised import LinearisedScorer
from cir_infer.scoring.reference import exact_terms
from tests.emulation.emulated import EmulatedDevice
from tests.scoring.cases import near, pack, quantise, random_terms

Array = npt.NDArray[Any]


def items_of(values: Array, row_type: str, cuts: tuple[int, ...] = ()) -> Rows:
    """Values (N, M, D) as rows of a type, cut into blocks at item numbers."""
    n, m, d = values.shape
    edges = [0, *cuts, n]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    if row_type != "int8":
        return Rows(tuple(np.ascontiguousarray(values[s].astype(row_type)) for s in spans))
    whole, scales = quantise(values.reshape(-1, d))
    whole, scales = whole.reshape(n, m, d), scales.reshape(n, m)
    return Rows(
        tuple(np.ascontiguousarray(whole[s]) for s in spans),
        tuple(np.ascontiguousarray(scales[s]) for s in spans),
    )


_found: dict[bytes, TopK] = {}
"""Every scorer is asked the same cases, and brute force takes longer than their answers."""


def defined(terms: QueryTerms, rows: Rows, k: int, allow: Array | None) -> TopK:
    digest = hashlib.blake2b(repr((terms.numerators.shape, rows.dtype, rows.take([]).shape, k)).encode())
    for array in (terms.numerators, terms.weights, allow, *rows.blocks, *(rows.scales or ())):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    key = digest.digest()
    if key not in _found:
        _found[key] = brute_force(terms, rows, k, allow)
    return _found[key]


def brute_force(terms: QueryTerms, rows: Rows, k: int, allow: Array | None) -> TopK:
    """Written apart from the scorers: one item after the other, one vector after the other."""
    q, j, _ = terms.numerators.shape
    out = TopK.empty(q, k, j, tokens=True)
    assert out.tokens is not None
    values = rows.take(np.arange(rows.count))
    every = exact_terms(terms, values.reshape(-1, rows.dimension)).reshape(
        q, j, rows.count, rows.tokens_per_item
    )
    for query in range(q):
        found = []
        for item in range(rows.count):
            if allow is not None and not allow[item // 8] >> (item % 8) & 1:
                continue
            mine = every[query, :, item]
            if not np.isfinite(mine).all() and not np.isfinite(values[item]).all():
                continue
            most = mine.max(axis=1)
            total = most[0]
            for part in most[1:]:
                total = total + part
            with np.errstate(over="ignore"):
                told, score = most.astype(np.float32), np.float32(total)
                rounded = mine.astype(np.float32)
            if not np.isfinite(told).all() or not np.isfinite(score):
                continue
            winners = [int(np.flatnonzero(rounded[t] == told[t])[0]) for t in range(j)]
            found.append((-float(score), item, score, told, winners))
        for place, (_, item, score, told, winners) in enumerate(sorted(found, key=lambda f: f[:2])[:k]):
            out.scores[query, place], out.rows[query, place] = score, item
            out.terms[query, place], out.tokens[query, place] = told, winners
    return out


def check(scorer: Scorer, rows: Rows, terms: QueryTerms, k: int, allow: Array | None = None) -> None:
    got, expected = scorer.topk(terms, k, allow), defined(terms, rows, k, allow)
    assert got.tokens is not None and got.tokens.dtype == np.int32
    for name, mine, theirs in zip(got._fields, got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs, f"not the definition's {name}")


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 20),
    m=st.integers(1, 5),
    t=st.integers(1, 6),
    k=st.integers(1, 24),
    kinds=st.integers(2, 30),
)
def test_a_maximum_over_query_vectors_is_the_merge_of_one_search_each(
    seed: int, n: int, m: int, t: int, k: int, kinds: int
) -> None:
    """As docs/gallery.md says, equal scores included; few kinds of vectors make many of those."""
    rng = np.random.default_rng(seed)
    rows = items_of(rng.standard_normal((kinds, 4))[rng.integers(0, kinds, (n, m))], "float32")
    vectors = random_terms(rng, t, 1, 4, False)
    scorer = make_scorer(rows, "reference")
    merged: dict[int, float] = {}
    found = scorer.topk(vectors, k)
    for row, score in zip(found.rows.ravel().tolist(), found.scores.ravel().tolist(), strict=True):
        if row >= 0:
            merged[row] = max(score, merged.get(row, score))
    every = scorer.topk(vectors, n)
    best = np.full(n, -np.inf)
    np.maximum.at(best, every.rows.ravel(), every.scores.ravel())
    expected = sorted(((-score, row) for row, score in enumerate(best.tolist())))[:k]
    assert sorted((-score, row) for row, score in merged.items())[:k] == expected


NEVER = Tuning(queries=10**9, rows=0)
MAKERS: dict[str, Callable[[Rows], Scorer]] = {
    "reference": lambda rows: make_scorer(rows, "reference"),
    "cpu": lambda rows: make_scorer(rows, "cpu"),
    "cpu-int8": lambda rows: make_scorer(rows, "cpu-int8"),
    **{name: partial(CpuScorer, threads=2, instruction_set=name) for name in instruction_sets()},
    **{
        f"{name}, int8": partial(Int8Scorer, threads=2, instruction_set=name, first_list=3)
        for name in instruction_sets()
    },
    "rows, grouped": lambda rows: GroupedScorer(rows, lambda vectors: CpuScorer(vectors, threads=1)),
    "int8 rows, grouped": lambda rows: GroupedScorer(rows, lambda v: Int8Scorer(v, first_list=3)),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[Rows], Scorer]:
    return MAKERS[request.param]


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
def test_any_case_that_hypothesis_thinks_of(make: Callable[[Rows], Scorer], row_type: str) -> None:
    @settings(max_examples=10)
    @given(
        seed=st.integers(0, 2**32 - 1),
        n=st.integers(0, 24),
        m=st.sampled_from([1, 2, 3, 8, 31, 32, 33, 70]),
        d=st.integers(1, 70),
        j=st.integers(1, 3),
        q=st.sampled_from([1, 2, 5, 6, 9]),
        k=st.integers(1, 30),
        weighted=st.booleans(),
        kinds=st.integers(1, 60),
        spread=st.sampled_from([0.0, 4.0]),
        masked=st.booleans(),
        cut=st.integers(0, 24),
    )
    def run(
        seed: int, n: int, m: int, d: int, j: int, q: int, k: int, weighted: bool, kinds: int, spread: float,
        masked: bool, cut: int,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((kinds, d)) * 10 ** (spread * rng.uniform(-1, 0.5, (kinds, 1)))
        values *= rng.random((kinds, 1)) > 0.1
        rows = items_of(values[rng.integers(0, kinds, (n, m))], row_type, (min(cut, n),))
        allow = pack(rng.random(n) < 0.6) if masked else None
        check(make(rows), rows, random_terms(rng, q, j, d, weighted), k, allow)

    run()


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_vectors_that_rounding_cannot_tell_apart(
    make: Callable[[Rows], Scorer], row_type: str, weighted: bool
) -> None:
    rng = np.random.default_rng(1)
    terms = random_terms(rng, 7, 2, 48, weighted)
    crowd = near(rng, terms.numerators[0].sum(axis=0) * 30, 600, row_type).reshape(100, 6, 48)
    rows = items_of(np.concatenate([rng.standard_normal((40, 6, 48)), crowd]), row_type, (50,))
    scorer = make(rows)
    for some in (terms, terms[:1], QueryTerms(-terms.numerators, terms.weights, terms.names)):
        for k in (1, 20, 120):
            check(scorer, rows, some, k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_item_with_a_vector_that_is_not_finite_never_ranks(
    make: Callable[[Rows], Scorer], bad: float
) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((60, 5, 24))
    values[rng.integers(0, 60, 20), rng.integers(0, 5, 20), rng.integers(0, 24, 20)] = bad
    rows = items_of(values, "float32")
    for q, weighted in ((1, True), (8, True), (1, False), (8, False)):
        check(make(rows), rows, random_terms(rng, q, 2, 24, weighted), 60)


def test_terms_beyond_float32_count_only_where_they_are_largest(make: Callable[[Rows], Scorer]) -> None:
    values = np.zeros((4, 3, 16))
    values[:, :, 0] = np.array([[1, -2, 0.5], [-2, -2, -2], [2, 0.1, 0], [0.2, 0.1, -2]])
    n = np.zeros((1, 1, 16), np.float32)
    n[0, 0, 0] = 3e38
    rows = items_of(values, "float32")
    for k in (1, 4):
        check(make(rows), rows, QueryTerms(n, None, ("a",)), k)
    n[0, 0, 0] = 1
    scorer = make(rows)
    got = scorer.topk(QueryTerms(n, None, ("a",)), 4)
    assert got.tokens is not None
    assert got.rows[0].tolist() == [2, 0, 3, 1] and got.tokens[0, :, 0].tolist() == [0, 0, 0, 0]


def test_the_best_item_may_be_second_in_every_term(make: Callable[[Rows], Scorer]) -> None:
    """What asking for M (k - 1) + 1 rows of the sum, or of each term, would miss."""
    values = np.full((30, 2, 2), -1.0)
    values[:10, 0], values[10:20, 1] = (1.0, -1.0), (-1.0, 1.0)
    values[25] = [[0.9, -1.0], [-1.0, 0.9]]
    rows = items_of(values, "float32")
    terms = QueryTerms(np.eye(2, dtype=np.float32)[None], None, ("a", "b"))
    got = make(rows).topk(terms, 1)
    assert got.tokens is not None
    assert got.rows[0].tolist() == [25] and got.tokens[0, 0].tolist() == [0, 1]
    check(make(rows), rows, terms, 5)


@pytest.mark.parametrize(("n", "m", "d"), [(3, 700, 3), (2, 5000, 1), (40, 2, 1030), (5, 64, 513)])
def test_many_vectors_an_item_and_long_ones(make: Callable[[Rows], Scorer], n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(m)
    rows = items_of(rng.standard_normal((n, m, d)), "float16")
    for q in (1, 9):
        check(make(rows), rows, random_terms(rng, q, 1, d, False), 2)


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
def test_the_cuda_kernels_of_rows_group_too(row_type: str) -> None:
    """The kernels as they are, on the emulated machine."""
    rng = np.random.default_rng(3)
    rows = items_of(rng.standard_normal((60, 4, 32)), row_type, (20,))
    allow = pack(rng.random(60) < 0.7)
    scorer = GroupedScorer(rows, lambda v: CudaScorer(v, device=EmulatedDevice(), tuning=NEVER))
    check(scorer, rows, random_terms(rng, 2, 1, 32, False), 3, allow)
    check(scorer, rows, random_terms(rng, 1, 2, 32, True), 3)


def test_shapes() -> None:
    rows = Rows.of(np.zeros((3, 4, 5), np.float32))
    assert (rows.count, rows.tokens_per_item, rows.dimension, rows.has_tokens) == (3, 4, 5, True)
    assert rows.vectors.count == 12 and rows.take([2, 0]).shape == (2, 4, 5)
    assert Rows.of(np.zeros((3, 5), np.float32)).vectors.count == 3
    scales = np.ones((3, 4), np.float32)
    assert Rows.of(np.zeros((3, 4, 5), np.int8), scales).vectors.scales[0].shape == (12,)  # type: ignore[index]
    for wrong in (
        lambda: Rows((np.zeros((3, 4, 5), np.float32), np.zeros((3, 3, 5), np.float32))),
        lambda: Rows((np.zeros((3, 5), np.float32), np.zeros((3, 1, 5), np.float32))),
        lambda: Rows.of(np.zeros((3, 0, 5), np.float32)),
        lambda: Rows.of(np.zeros((0, MOST_TOKENS + 1, 1), np.float32)),
        lambda: Rows.of(np.zeros((0, MOST_TOKENS, 1024), np.float32)),
        lambda: Rows.of(np.zeros((1, 1, 1, 1), np.float32)),
        lambda: Rows.of(np.zeros((3, 4, 5), np.int8), np.ones(3, np.float32)),
        lambda: Rows.of(np.zeros((3, 4, 5), np.float32)[:, ::2]),
        lambda: make_scorer(rows, "cpu").topk(random_terms(np.random.default_rng(0), 1, 1, 20, True), 1),
        lambda: make_scorer(rows, "cpu").topk(
            random_terms(np.random.default_rng(0), 1, 1, 5, True), 1, np.zeros(2, np.uint8)
        ),
    ):
        with pytest.raises(ScoringError):
            wrong()
    with pytest.raises(UsageError, match="linearised"):
        LinearisedScorer(make_scorer(rows), rows, lambda queries, count: np.zeros((1, 1), np.int64))
