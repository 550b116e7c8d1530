"""Sizes and values that come from callers: right, or a typed error, never memory that was not asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import CirError, ScoringError, UsageError
from cir_infer.scoring import _kernels, make_scorer
from cir_infer.scoring.contract import MOST_VALUES, QueryTerms, Rows
from cir_infer.scoring.cpu import CpuScorer, Int8Scorer
from tests.scoring.cases import check_topk, random_terms

ROWS = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
BACKENDS = ("cpu", "cpu-int8", "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("q", "k"), [(4, 2**62), (8, 2**61), (16, 2**60), (1, 2**63), (1, 2**40), (2**12, 2**30)]
)
def test_an_answer_that_no_memory_holds_is_refused(backend: str, q: int, k: int) -> None:
    terms = random_terms(np.random.default_rng(1), q, 2, 8, True)
    with pytest.raises(ScoringError, match="bytes; ask for fewer"):
        make_scorer(Rows.of(ROWS), backend).topk(terms, k)


@pytest.mark.parametrize("backend", BACKENDS)
def test_places_beyond_the_rows_take_no_work(backend: str) -> None:
    """A million places for a hundred rows: the kernels see k = 100."""
    terms = random_terms(np.random.default_rng(1), 3, 2, 8, True)
    check_topk(make_scorer(Rows.of(ROWS), backend).topk(terms, 1_000_000), terms, Rows.of(ROWS), 1_000_000)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["numerators", "weights"])
def test_values_that_are_not_finite(what: str, spoil: float) -> None:
    base = random_terms(np.random.default_rng(1), 2, 2, 8, True)
    assert base.weights is not None
    arrays = {"numerators": base.numerators.copy(), "weights": base.weights.copy()}
    arrays[what][1, 0, 3] = spoil
    with pytest.raises(ScoringError, match="NaN"):
        QueryTerms(arrays["numerators"], arrays["weights"], base.names)


@pytest.mark.parametrize(
    "numerators",
    [
        [[[1.0]]],
        None,
        np.ones((1, 1, 8)),
        np.ones((1, 1, 8), ">f4"),
        np.ones((1, 8), np.float32),
        np.ones((1, 1, 8), np.int32),
        np.ones((1, 1, 8), object),
        np.broadcast_to(np.float32(1), (2**40, 1, 8)),
        np.broadcast_to(np.float32(1), (1, 1, 2**45)),
    ],
)
def test_terms_of_another_kind(numerators: Any) -> None:
    with pytest.raises(ScoringError) as raised:
        QueryTerms(numerators, None, ("a",))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_values_are_refused_and_other_arrays_are_plain(backend: str, tmp_path: Path) -> None:
    """What lies under a mask was never meant to be used; a matrix has two axes whatever is taken of it."""
    n = ROWS[:2, None]
    expected = make_scorer(Rows.of(ROWS), backend).topk(QueryTerms(n, None, ("a",)), 5)
    with pytest.raises(ScoringError, match="numerators are masked"):
        QueryTerms(np.ma.array(n, mask=n > 0), None, ("a",))
    with pytest.raises(ScoringError, match="weights are masked"):
        QueryTerms(n, np.ma.array(np.abs(n), mask=n > 0), ("a",))
    with pytest.raises(ScoringError, match="blocks are masked"):
        Rows.of(np.ma.array(ROWS, mask=ROWS > 0))
    with pytest.raises(ScoringError, match="expected whole numbers"):
        Rows.of(ROWS).take(np.ma.array([1, 2], mask=[0, 1]))
    terms = QueryTerms(np.ma.array(n), np.ma.array(np.ones_like(n)), ("a",))
    assert type(terms.numerators) is type(terms.weights) is np.ndarray
    mask = np.ma.array(np.full(13, 255, np.uint8), mask=[0] * 12 + [1])
    np.save(tmp_path / "rows.npy", ROWS)
    for rows in (np.matrix(ROWS), np.ma.array(ROWS), np.load(tmp_path / "rows.npy", mmap_mode="r")):
        scorer = make_scorer(Rows.of(rows), backend)
        np.testing.assert_array_equal(scorer.topk(QueryTerms(n, None, ("a",)), 5).rows, expected.rows)
        with pytest.raises(ScoringError, match="mask is a MaskedArray"):
            scorer.topk(terms, 5, mask)


def test_negative_weights_and_weights_of_another_shape() -> None:
    n = np.ones((1, 1, 8), np.float32)
    for w in (-n, n[..., :4], n.astype(np.float64), [1.0], np.broadcast_to(np.float32(-1), (1, 1, 8))):
        with pytest.raises(ScoringError):
            QueryTerms(n, w, ("a",))  # type: ignore[arg-type]


@pytest.mark.parametrize("weighted", [True, False])
def test_terms_that_are_not_contiguous(weighted: bool) -> None:
    base = random_terms(np.random.default_rng(1), 6, 2, 16, weighted)
    w = None if base.weights is None else base.weights[::-2, :, ::2]
    terms = QueryTerms(base.numerators[::-2, :, ::2], w, base.names)
    for backend in BACKENDS:
        check_topk(make_scorer(Rows.of(ROWS), backend).topk(terms, 5), terms, Rows.of(ROWS), 5)


@pytest.mark.parametrize(
    "rows",
    [
        np.empty((5, 0), np.float32),
        np.empty((0, MOST_VALUES + 1), np.float32),
        np.empty((0, 2**33), np.int8),
        np.ones((2, 2, 2, 2), np.float32),
        np.ones(5, np.float32),
        np.ones((5, 8)),
        np.ones((5, 8), ">f4"),
        np.ones((5, 8), np.uint8),
        np.ones((8, 5), np.float32).T,
        [[1.0, 2.0]],
        None,
    ],
)
def test_rows_of_another_kind(rows: Any) -> None:
    with pytest.raises(ScoringError):
        Rows.of(
            rows,
            np.ones(len(rows), np.float32)
            if isinstance(rows, np.ndarray) and rows.dtype == np.int8
            else None,
        )


def test_the_widest_rows_there_may_be() -> None:
    rng = np.random.default_rng(2)
    rows = Rows.of(rng.standard_normal((9, MOST_VALUES), dtype=np.float32))
    n = rng.standard_normal((1, 1, MOST_VALUES), dtype=np.float32)
    for terms in (QueryTerms(n, None, ("a",)), QueryTerms(n, np.abs(n), ("a",))):
        check_topk(CpuScorer(rows).topk(terms, 4), terms, rows, 4)
        check_topk(Int8Scorer(rows, first_list=2).topk(terms, 4), terms, rows, 4)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", 2**31, 2**63, 2**70, np.nan])
def test_numbers_of_threads(threads: Any) -> None:
    for backend in ("cpu", "cpu-int8"):
        with pytest.raises(UsageError, match="threads"):
            make_scorer(Rows.of(ROWS), backend, threads=threads)


def test_more_threads_than_work_and_a_first_list_beyond_the_rows() -> None:
    terms = random_terms(np.random.default_rng(1), 2, 2, 8, True)
    check_topk(CpuScorer(Rows.of(ROWS), threads=1024).topk(terms, 3), terms, Rows.of(ROWS), 3)
    check_topk(Int8Scorer(Rows.of(ROWS), first_list=2**62).topk(terms, 3), terms, Rows.of(ROWS), 3)


def test_the_native_module_checks_for_itself() -> None:
    """Whoever calls it past cpu.py reads and writes no memory that is not there."""
    n = np.ones((2, 1, 8), np.float32)
    gallery = _kernels.Gallery([ROWS], [])
    index = _kernels.Int8Index(gallery, 1, "")
    wrong: list[tuple[Any, ...]] = [
        (n, None, 0, None, 1, ""),
        (n, None, -5, None, 1, ""),
        (n, None, 5, None, 0, ""),
        (n[..., :4].copy(), None, 5, None, 1, ""),
        (n, n[:1].copy(), 5, None, 1, ""),
        (n[0], None, 5, None, 1, ""),
        (n, None, 5, np.zeros(3, np.uint8), 1, ""),
        (n, None, 5, None, 1, "mmx"),
    ]
    for arguments in wrong:
        with pytest.raises((ValueError, TypeError)):
            _kernels.topk(gallery, *arguments)
        with pytest.raises((ValueError, TypeError)):
            index.topk(*arguments, 0)
    assert _kernels.topk(gallery, n, None, 2**62, None, 1, "")[0].shape == (2, 100)
    with pytest.raises(ValueError, match="products"):
        _kernels.topk(gallery, n, None, 5, None, 1, "", "int4")
    for set_name in _kernels.byte_instruction_sets():
        for bounded in (
            (n, None, set_name, 3, True, [1.0] * 4),
            (n, None, set_name, 1, True, [1.0] * 3),
            (n[..., :4].copy(), None, set_name, 1, False, [1.0] * 4),
            (n, n[:1].copy(), set_name, 1, False, [1.0] * 4),
            (n[0], None, set_name, 1, False, [1.0] * 4),
        ):
            with pytest.raises((ValueError, TypeError)):
                _kernels.upper_bounds(gallery, *bounded)
    blocks: list[tuple[list[Any], list[Any]]] = [
        ([], []),
        ([ROWS, ROWS[:, :4].copy()], []),
        ([ROWS, ROWS.astype(np.float16)], []),
        ([ROWS.astype(np.float64)], []),
        ([ROWS.astype(np.int8)], []),
        ([ROWS.astype(np.int8)], [np.ones(99, np.float32)]),
        ([ROWS], [np.ones(100, np.float32)]),
        ([ROWS[0]], []),
        ([np.empty((3, 0), np.float32)], []),
    ]
    for some, scales in blocks:
        with pytest.raises((ValueError, TypeError)):
            _kernels.Gallery(some, scales)


def test_memory_that_is_not_there_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = random_terms(np.random.default_rng(1), 1, 1, 8, True)
    scorer = CpuScorer(Rows.of(ROWS))
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, hard))
    try:
        with pytest.raises(CirError, match="memory"):
            scorer.topk(terms, 200_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
