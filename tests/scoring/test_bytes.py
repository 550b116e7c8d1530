"""Batches by products of bytes: bounds hold for every row, no part of them can go, answers are the same."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import UsageError
from cir_infer.scoring import _kernels
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer
from cir_infer.scoring.cpu import CpuScorer, Int8Scorer
from cir_infer.scoring.reference import exact_terms
from tests.emulation import tiles
from tests.other_machine import CaseRunner, command
from tests.scoring.cases import pack, random_terms, rows_of
from tests.scoring.conformance import ScorerConformance
from tests.scoring.elsewhere import WAYS, ElsewhereScorer, upper_bounds

SETS = list(_kernels.byte_instruction_sets())
WHOLE = (1.0, 1.0, 1.0, 1.0)

AMX = "avx512amx elsewhere"
"""AMX without a processor that has it: tiles in C++, or what CIR_AMX_RUNNER names (`make amx-check`)."""
if command("CIR_AMX_RUNNER") or "avx512vnni" in SETS:
    SETS.append(AMX)


@functools.cache
def amx() -> CaseRunner:
    return CaseRunner([*(command("CIR_AMX_RUNNER") or [str(tiles.program())]), "avx512amx"])


if not SETS:
    pytest.skip("no instruction set of this machine multiplies bytes", allow_module_level=True)


class OneByteInstructionSet(ScorerConformance):
    """Every query by bounds from bytes, one digit and two in turn, however few there are."""

    instruction_set = ""

    @pytest.fixture(autouse=True)
    def needs_the_instruction_set(self) -> None:
        if self.instruction_set not in SETS:
            pytest.skip(f"this machine has no {self.instruction_set}, or it does not multiply bytes")

    def make(self, rows: Rows) -> Scorer:
        return CpuScorer(rows, threads=2, instruction_set=self.instruction_set, products="int8")


class TestAvx512Vnni(OneByteInstructionSet):
    instruction_set = "avx512vnni"


class TestAvx512Amx(OneByteInstructionSet):
    instruction_set = "avx512amx"


class TestAvx512AmxElsewhere(OneByteInstructionSet):
    instruction_set = AMX
    row_types = ("float32", "int8")  # float16 is widened as ever
    examples = 10

    def make(self, rows: Rows) -> Scorer:
        return ElsewhereScorer(rows, amx(), products="int8")


class TestAvxVnni(OneByteInstructionSet):
    instruction_set = "avxvnni"
    row_types = ("float32",)  # what it does with others, avx2 does


class TestNeonDot(OneByteInstructionSet):
    instruction_set = "neondot"


def bounds(
    rows: Rows, terms: QueryTerms, instruction_set: str, way: str, shares: tuple[float, ...] = WHOLE
) -> npt.NDArray[np.float32]:
    """(Q, N)"""
    if instruction_set == AMX:
        return upper_bounds(rows, terms, amx(), way, shares)
    gallery = _kernels.Gallery(list(rows.blocks), list(rows.scales or ()))
    digits, closer = (2 if way == "two" else 1), way == "closer"
    found: npt.NDArray[np.float32] = _kernels.upper_bounds(
        gallery, terms.numerators, terms.weights, instruction_set, digits, closer, list(shares)
    )
    return found


def violations(
    rows: Rows, terms: QueryTerms, instruction_set: str, way: str, shares: tuple[float, ...] = WHOLE
) -> int:
    """How many exact scores pass their bounds; where there is none, nothing is claimed."""
    exact = exact_terms(terms, rows.take(np.arange(rows.count))).sum(axis=1)
    return int((exact > bounds(rows, terms, instruction_set, way, shares)).sum())


def copy_violations(
    rows: Rows, terms: QueryTerms, instruction_set: str, way: str, shares: tuple[float, ...] = WHOLE
) -> int:
    """As `violations`, of bounds from the bytes of an int8 copy."""
    index = _kernels.Int8Index(_kernels.Gallery(list(rows.blocks), []), 1, instruction_set)
    exact = exact_terms(terms, rows.take(np.arange(rows.count))).sum(axis=1)
    digits, closer = (2 if way == "two" else 1), way == "closer"
    found = index.upper_bounds(terms.numerators, terms.weights, instruction_set, digits, closer, list(shares))
    return int((exact > found).sum())


def hostile_values(
    rng: np.random.Generator, n: int, d: int, kinds: tuple[str, ...]
) -> npt.NDArray[np.float32]:
    """Rows of the named kinds in turn."""
    values = rng.standard_normal((n, d))
    for i in range(n):
        match kinds[i % len(kinds)]:
            case "outlier":
                values[i, rng.integers(d)] *= 1e4
            case "constant":
                values[i] = rng.standard_normal()
            case "signs":
                values[i] = np.sign(values[i]) * 3
            case "sparse":
                values[i] *= rng.random(d) < 0.05
            case "twin":
                values[i] = values[rng.integers(n)] * (1 + 1e-6 * rng.standard_normal())
            case "tiny":
                values[i] *= 1e-30
            case "denormal":
                values[i] *= 1e-41
            case "huge":
                values[i] *= 1e30
            case "whole":
                values[i] = rng.integers(-127, 128, d)
            case "zero":
                values[i] = 0
    return values.astype(np.float32)


KINDS = (
    "plain",
    "outlier",
    "constant",
    "signs",
    "sparse",
    "twin",
    "tiny",
    "denormal",
    "huge",
    "whole",
    "zero",
)


@pytest.mark.parametrize("instruction_set", SETS)
def test_no_exact_score_passes_its_bound(instruction_set: str) -> None:
    @settings(max_examples=120)
    @given(
        seed=st.integers(0, 2**32 - 1),
        row_type=st.sampled_from(["float32", "float16", "int8"]),
        d=st.integers(1, 200),
        j=st.integers(1, 3),
        weighted=st.booleans(),
        peak=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        way=st.sampled_from(WAYS),
        along=st.booleans(),
    )
    def run(
        seed: int, row_type: str, d: int, j: int, weighted: bool, peak: float, kinds: list[str], way: str,
        along: bool,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        terms = random_terms(rng, 5, j, d, weighted, peak)
        values = hostile_values(rng, 70, d, tuple(kinds))
        if along:  # rows near the queries, where bounds are tightest
            values[:5] = terms.numerators[:, 0] / np.abs(terms.numerators[:, 0]).max(axis=1, keepdims=True)
        rows = rows_of(np.clip(values, -6e4, 6e4) if row_type == "float16" else values, row_type, [31])
        assert violations(rows, terms, instruction_set, way) == 0
        if row_type != "int8" and instruction_set != AMX:
            assert copy_violations(rows, terms, instruction_set, way) == 0

    run()


@pytest.mark.parametrize(("weighted", "peak"), [(True, 0.5), (False, 0.5), (False, 3.0)])
@pytest.mark.parametrize("instruction_set", SETS)
def test_bounds_are_within_a_few_hundredths_and_closer_by_a_second_digit(
    instruction_set: str, weighted: bool, peak: float
) -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((500, 512))
    rows = rows_of(values / np.linalg.norm(values, axis=1, keepdims=True), "float32")
    terms = random_terms(rng, 8, 2, 512, weighted, peak)
    exact = exact_terms(terms, rows.take(np.arange(500))).sum(axis=1)
    largest = 2 if weighted else np.linalg.norm(terms.numerators, axis=2).sum(axis=1)[:, None]
    one, closer, two = (
        float(((bounds(rows, terms, instruction_set, way) - exact) / largest).mean()) for way in WAYS
    )
    assert two <= closer < one < 0.06
    assert closer < 0.03
    assert closer < 1.1 * two


def signed(rng: np.random.Generator, size: npt.ArrayLike, d: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.where(rng.random(d) < 0.5, -1.0, 1.0) * size)


def numerators_that_round_along_the_row() -> tuple[npt.NDArray[Any], ...]:
    rng = np.random.default_rng(0)
    n = rng.uniform(-1, 1, 256)  # no peak among them, so the unit is the largest's
    unit = np.abs(n).max() / 127
    rest = n / unit - np.rint(n / unit)
    return n, np.rint(127 * rest / np.abs(rest).max()), np.empty(0)


def a_row_that_rounds_along_numerators() -> tuple[npt.NDArray[Any], ...]:
    n = signed(np.random.default_rng(1), 127, 256)
    t = np.sign(n) * 20.49
    t[0] = n[0]
    return n, t, np.empty(0)


def weights_that_round_along_squares() -> tuple[npt.NDArray[Any], ...]:
    n = signed(np.random.default_rng(2), 127, 256)
    w = np.full(256, 9.51)
    w[0] = 127
    return n, np.sign(n), w


def squares_that_round_along_weights() -> tuple[npt.NDArray[Any], ...]:
    n = signed(np.random.default_rng(3), 127, 256)
    t = np.sign(n) * 10  # 10^2 * 255 / 127^2 = 1.58, rounded to 2
    t[0] = np.sign(n[0]) * 127
    return n, t, np.full(256, 127.0)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(
    ("margin", "case"),
    [
        (0, numerators_that_round_along_the_row),
        (1, a_row_that_rounds_along_numerators),
        (2, weights_that_round_along_squares),
        (3, squares_that_round_along_weights),
    ],
)
def test_a_margin_that_is_a_little_too_small_is_caught(instruction_set: str, margin: int, case: Any) -> None:
    n, t, w = case()
    rows = Rows.of(t[None].astype(np.float32))
    weights = w[None, None].astype(np.float32) if len(w) else None
    terms = QueryTerms(n[None, None].astype(np.float32), weights, ("one",))
    assert violations(rows, terms, instruction_set, "one") == 0
    planted = tuple(0.9 if i == margin else 1.0 for i in range(4))
    assert violations(rows, terms, instruction_set, "one", planted) == 1
    assert violations(rows, terms, instruction_set, "closer") == 0
    if margin == 0:  # and a second digit takes no more of it back than it is worth
        assert violations(rows, terms, instruction_set, "closer", planted) == 1


def a_row_whose_copy_gains_squares_along_weights() -> tuple[npt.NDArray[Any], ...]:
    n, t = np.zeros(256), np.full(256, 40.51)  # 41 in the copy
    n[0] = t[0] = 127
    return n, t, np.full(256, 127.0)


@pytest.mark.parametrize("instruction_set", [each for each in SETS if each != AMX])
@pytest.mark.parametrize(
    ("whole", "planted", "case"),
    [
        (WHOLE, (1.0, 0.9, 1.0, 1.0), a_row_that_rounds_along_numerators),
        # No numerator meets what this copy loses, so that margin may go.
        ((1.0, 0.0, 1.0, 1.0), (1.0, 0.0, 1.0, 0.9), a_row_whose_copy_gains_squares_along_weights),
    ],
)
def test_what_a_copy_loses_is_in_its_bounds(
    instruction_set: str, whole: tuple[float, ...], planted: tuple[float, ...], case: Any
) -> None:
    n, t, w = case()
    rows = Rows.of(t[None].astype(np.float32))
    weights = w[None, None].astype(np.float32) if len(w) else None
    terms = QueryTerms(n[None, None].astype(np.float32), weights, ("one",))
    for way in WAYS:
        assert copy_violations(rows, terms, instruction_set, way) == 0
    assert copy_violations(rows, terms, instruction_set, "one", whole) == 0
    assert copy_violations(rows, terms, instruction_set, "one", planted) == 1


@pytest.mark.parametrize("row_type", ["float32", "float16"])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_batch_from_an_int8_copy_is_bounded_by_its_bytes(row_type: str, weighted: bool) -> None:
    rng = np.random.default_rng(14)
    values = rng.standard_normal((4_000, 96))
    values[100:110] = 0
    rows, terms = rows_of(values, row_type, [700, 1_900]), random_terms(rng, 140, 2, 96, weighted, 0.5)
    allow = pack(rng.random(4_000) < 0.7)
    for threads in (1, 3):
        plain = CpuScorer(rows, threads=threads, products="float32")
        for k, mask in ((20, None), (20, allow), (1_000, None)):
            scorer = Int8Scorer(rows, threads=threads)
            for a, b in zip(scorer.topk(terms, k, mask), plain.topk(terms, k, mask), strict=True):
                np.testing.assert_array_equal(a, b)
            assert scorer.statistics.exhaustive == scorer.statistics.extended == 0
            if k == 20:
                assert scorer.statistics.rescored < 140 * 4_000 / 8


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("weighted", [True, False])
def test_bounds_hold_for_any_number_of_terms(instruction_set: str, weighted: bool) -> None:
    """Whole rows and terms have no margins: what is left is what adding the terms one by one loses."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        signs = signed(rng, 1, 64)
        n = np.rint(np.repeat(signs[None], 1000, 0) * rng.integers(1, 128, (1000, 1))) * (1 + rng.random())
        values = signs * rng.integers(120, 128, (8, 64))
        values[:, 0] = 127 * signs[0]
        numerators = n[None].astype(np.float32)
        weights = np.ones_like(numerators) if weighted else None
        terms = QueryTerms(numerators, weights, tuple(map(str, range(1000))))
        for way in WAYS:
            assert violations(Rows.of(values.astype(np.float32)), terms, instruction_set, way) == 0


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
def test_any_products_give_the_very_same_answers(row_type: str) -> None:
    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 2**32 - 1),
        n=st.integers(300, 1500),
        d=st.sampled_from([33, 64, 130]),
        q=st.integers(8, 40),
        k=st.sampled_from([1, 10, 200]),
        weighted=st.booleans(),
        peak=st.sampled_from([0.0, 0.5, 8.0]),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        masked=st.booleans(),
        threads=st.sampled_from([1, 3]),
    )
    def run(
        seed: int, n: int, d: int, q: int, k: int, weighted: bool, peak: float, kinds: list[str],
        masked: bool, threads: int,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        terms = random_terms(rng, q, 2, d, weighted, peak)
        values = hostile_values(rng, n, d, tuple(kinds))
        rows = rows_of(np.clip(values, -6e4, 6e4) if row_type == "float16" else values, row_type, [n // 3])
        allow = pack(rng.random(n) < 0.7) if masked else None
        expected = CpuScorer(rows, threads=threads, products="float32").topk(terms, k, allow)
        for scorer in (
            CpuScorer(rows, threads=threads, products="int8"),
            CpuScorer(rows, threads=threads),
        ):
            for a, b in zip(scorer.topk(terms, k, allow), expected, strict=True):
                np.testing.assert_array_equal(a, b)

    run()


def test_lists_are_short_where_rows_are_apart_and_products_in_float32_take_over_where_not() -> None:
    rng = np.random.default_rng(5)
    terms = random_terms(rng, 32, 2, 256, True, 0.5)
    apart = CpuScorer(rows_of(rng.standard_normal((20_000, 256)), "float32"), threads=1)
    apart.topk(terms, 10)
    counts = apart.statistics
    assert counts.bounded + counts.multiplied == 32 * 20_000
    assert counts.bounded > 0.9 * 32 * 20_000
    assert counts.listed < 0.01 * counts.bounded

    # One value of each row hides the others from bytes.
    values = rng.standard_normal((20_000, 256))
    values[:, 7] = 1e5
    hidden = CpuScorer(rows_of(values, "float32"), threads=1)
    hidden.topk(terms, 10)
    counts = hidden.statistics
    assert counts.bounded + counts.multiplied == 32 * 20_000
    assert counts.multiplied > 0.8 * 32 * 20_000


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("k", [1, 50, 700])
def test_rows_that_wait_are_scored_wherever_their_block_ends(row_type: str, k: int) -> None:
    rng = np.random.default_rng(8)
    values, terms = rng.standard_normal((3_000, 128)), random_terms(rng, 40, 2, 128, True, 0.5)
    cuts = sorted(int(cut) for cut in rng.integers(0, 3_000, 60))
    expected = CpuScorer(rows_of(values, row_type), threads=1, products="float32").topk(terms, k)
    for threads in (1, 3):
        scorer = CpuScorer(rows_of(values, row_type, cuts), threads=threads, products="int8")
        for a, b in zip(scorer.topk(terms, k), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("vectors", [None, 3])
@pytest.mark.parametrize("queries", [256, 300, 700])
def test_queries_that_threads_share_out_are_answered_as_by_one(queries: int, vectors: int | None) -> None:
    rng = np.random.default_rng(9)
    values = rng.standard_normal((900, 96) if vectors is None else (300, vectors, 96)).astype(np.float32)
    rows, terms = Rows.of(values), random_terms(rng, queries, 2, 96, True, 0.5)
    allow = pack(rng.random(rows.count) < 0.7)
    for mask in (None, allow):
        expected = CpuScorer(rows, threads=1).topk(terms, 20, mask)
        for threads in (2, 3, 5):
            for a, b in zip(CpuScorer(rows, threads=threads).topk(terms, 20, mask), expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_few_queries_and_products_in_float32_bound_nothing() -> None:
    rng = np.random.default_rng(6)
    rows = rows_of(rng.standard_normal((2_000, 256)), "float32")
    for scorer, queries in ((CpuScorer(rows), 1), (CpuScorer(rows, products="float32"), 64)):
        scorer.topk(random_terms(rng, queries, 2, 256, True), 10)
        assert scorer.statistics == (0, 0, 0, 0)


def test_products_that_there_are_not() -> None:
    with pytest.raises(UsageError, match="products are 'int4'"):
        CpuScorer(Rows.of(np.zeros((2, 16), np.float32)), products="int4")  # type: ignore[arg-type]


def test_an_exact_scan_from_an_int8_copy_answers_alike() -> None:
    rng = np.random.default_rng(7)
    rows, terms = rows_of(rng.standard_normal((3_000, 96)), "float32"), random_terms(rng, 16, 2, 96, True)
    for a, b in zip(
        Int8Scorer(rows).topk(terms, 20), CpuScorer(rows, products="int8").topk(terms, 20), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(AMX not in SETS or bool(command("CIR_AMX_RUNNER")), reason="compares on one processor")
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_products_of_tiles_are_those_of_vectors(way: str, weighted: bool) -> None:
    """Whole numbers are the same however they are summed, and what is made of them is the same code."""
    rng = np.random.default_rng(8)
    for q in (1, 2, 5, 8, 9, 15, 16, 17, 21, 37):
        for d in (3, 64, 65, 200, 512):
            rows = rows_of(hostile_values(rng, 71, d, KINDS), "float32", [40])
            terms = random_terms(rng, q, 2, d, weighted, 3.0)
            np.testing.assert_array_equal(
                bounds(rows, terms, AMX, way), bounds(rows, terms, "avx512vnni", way)
            )
