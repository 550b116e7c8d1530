"""The native scorer: every instruction set that this machine runs passes the suite."""

from __future__ import annotations

import numpy as np
import pytest

from cir_infer.errors import DeviceError, UsageError
from cir_infer.scoring import _kernels
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer
from cir_infer.scoring.cpu import CpuScorer, Int8Scorer, instruction_sets
from tests.scoring.cases import check_topk, quantise, random_terms, rows_of
from tests.scoring.conformance import ScorerConformance

BEST = instruction_sets()[0]


class OneInstructionSet(ScorerConformance):
    instruction_set = BEST

    @pytest.fixture(autouse=True)
    def needs_the_instruction_set(self) -> None:
        if self.instruction_set not in instruction_sets():
            pytest.skip(f"this machine has no {self.instruction_set}")

    def make(self, rows: Rows) -> Scorer:
        return CpuScorer(rows, threads=2, instruction_set=self.instruction_set)


class TestSerial(OneInstructionSet):
    instruction_set = "serial"


class TestAvx2(OneInstructionSet):
    instruction_set = "avx2"


class TestAvx512(OneInstructionSet):
    instruction_set = "avx512"


class TestAvx512Vnni(OneInstructionSet):
    instruction_set = "avx512vnni"


class TestNeon(OneInstructionSet):
    instruction_set = "neon"


class OneInt8InstructionSet(OneInstructionSet):
    """A first list of a few rows: small galleries take the path of large ones, and lists get extended."""

    def make(self, rows: Rows) -> Scorer:
        return Int8Scorer(rows, threads=2, instruction_set=self.instruction_set, first_list=3)


class TestInt8Serial(OneInt8InstructionSet):
    instruction_set = "serial"


class TestInt8Avx2(OneInt8InstructionSet):
    instruction_set = "avx2"


class TestInt8Avx512(OneInt8InstructionSet):
    instruction_set = "avx512"


class TestInt8Avx512Vnni(OneInt8InstructionSet):
    instruction_set = "avx512vnni"


class TestInt8AsShipped(ScorerConformance):
    def make(self, rows: Rows) -> Scorer:
        return Int8Scorer(rows)


@pytest.mark.parametrize(("threads", "queries"), [(8, 12), (8, 17)])
def test_more_hits_than_there_is_room_for_two_queries_of_a_thread(threads: int, queries: int) -> None:
    rng = np.random.default_rng(8)
    k = (1 << 20) // threads + 1  # of twice as many a query keeps hits
    rows = Rows.of(rng.standard_normal((2 * k, 3)).astype(np.float32))
    terms = random_terms(rng, queries, 1, 3, weighted=False)
    scorer = CpuScorer(rows, threads=threads)
    together = scorer.topk(terms, k)
    for q in {0, queries // 2, queries - 1}:
        for one, many in zip(scorer.topk(terms[q], k), together, strict=True):
            np.testing.assert_array_equal(one, None if many is None else many[q : q + 1])


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
def test_the_number_of_threads_changes_nothing(row_type: str) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng.standard_normal((30_000, 64)), row_type, cuts=[10_000])
    for q in (1, 3, 20):
        terms = random_terms(rng, q, 2, 64, True)
        one = CpuScorer(rows, threads=1).topk(terms, 30)
        for threads in (2, 5):
            many = CpuScorer(rows, threads=threads).topk(terms, 30)
            np.testing.assert_array_equal(many.rows, one.rows)
            np.testing.assert_array_equal(many.scores, one.scores)
            np.testing.assert_array_equal(many.terms, one.terms)


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
@pytest.mark.parametrize("weighted", [True, False])
def test_int8_first_gives_the_very_answer_of_the_plain_scan(row_type: str, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    rows = rows_of(rng.standard_normal((20_000, 128)), row_type, cuts=[7_000])
    scorer = Int8Scorer(rows)
    terms = random_terms(rng, 5, 2, 128, weighted)
    for k in (1, 10, 50):
        got, expected = scorer.topk(terms, k), CpuScorer(rows).topk(terms, k)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    statistics = scorer.statistics
    assert statistics.queries == 15
    assert statistics.extended == statistics.exhaustive == 0
    assert 15 * 64 <= statistics.rescored <= 15 * 264


def test_int8_lists_extend_until_they_are_long_enough() -> None:
    """300 rows closer together than int8 can tell apart: only the stored rows say which is best."""
    rng = np.random.default_rng(2)
    terms = random_terms(rng, 1, 2, 64, True)
    values = rng.standard_normal((8_000, 64))
    values[1000:1300] = terms.numerators.sum(axis=1) / np.abs(terms.numerators).max()
    values[1000:1300] += 1e-4 * rng.standard_normal((300, 64))
    rows = Rows.of(values.astype(np.float32))
    scorer = Int8Scorer(rows, first_list=8)
    got = scorer.topk(terms, 5)
    check_topk(got, terms, rows, 5)
    np.testing.assert_array_equal(got.rows, CpuScorer(rows).topk(terms, 5).rows)
    assert scorer.statistics.extended == 1


def test_terms_that_no_bound_covers_are_still_exact() -> None:
    """A numerator where the weight is zero has no bound: the query is answered by a scan of the rows."""
    rng = np.random.default_rng(3)
    base = random_terms(rng, 1, 2, 64, True)
    assert base.weights is not None
    weights = base.weights.copy()
    weights[0, 1, :8] = 0
    terms = QueryTerms(base.numerators, weights, base.names)
    rows = Rows.of(rng.standard_normal((9_000, 64)).astype(np.float32))
    scorer = Int8Scorer(rows)
    check_topk(scorer.topk(terms, 10), terms, rows, 10)
    assert scorer.statistics.exhaustive == 1


def test_the_copy_is_an_eighth_more_than_its_rows_and_nothing_for_int8() -> None:
    values = np.random.default_rng(0).standard_normal((100, 64))
    assert Int8Scorer(rows_of(values, "float32")).copy_bytes == 100 * 68
    assert Int8Scorer(rows_of(values, "int8")).copy_bytes == 0


def test_read_all_reads_every_byte() -> None:
    values = np.arange(1000 * 16, dtype=np.float32).reshape(1000, 16)
    expected = int(values.view(np.uint32).astype(np.uint64).sum())
    assert CpuScorer(Rows((values[:300], values[300:])), threads=2).read_all() % 2**32 == expected % 2**32


def test_settings_that_cannot_be() -> None:
    rows = Rows.of(np.zeros((2, 16), np.float32))
    with pytest.raises(UsageError, match="threads"):
        CpuScorer(rows, threads=0)
    with pytest.raises(DeviceError, match="instruction set"):
        CpuScorer(rows, instruction_set="mmx")
    with pytest.raises(UsageError, match="first_list"):
        Int8Scorer(rows, first_list=0)
    for odd in ("2", np.nan, [2], 1.5, True):
        with pytest.raises(UsageError, match="first_list"):
            Int8Scorer(rows, first_list=odd)  # type: ignore[arg-type]


def test_read_only_rows_are_read() -> None:
    values = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
    values.setflags(write=False)
    rows, terms = Rows.of(values), random_terms(np.random.default_rng(1), 1, 2, 16, True)
    check_topk(CpuScorer(rows).topk(terms, 3), terms, rows, 3)


def test_a_batch_over_int8_rows_is_a_plain_scan_which_bounds_them_faster() -> None:
    rng = np.random.default_rng(12)
    rows = rows_of(rng.standard_normal((4_000, 96)), "int8")
    few, many = random_terms(rng, 4, 2, 96, True), random_terms(rng, 40, 2, 96, True)
    scorer, plain = Int8Scorer(rows, threads=2), CpuScorer(rows, threads=2)
    for terms in (few, many):
        for a, b in zip(scorer.topk(terms, 20), plain.topk(terms, 20), strict=True):
            np.testing.assert_array_equal(a, b)
    assert scorer.statistics.exhaustive == (40 if _kernels.byte_instruction_sets() else 0)


def test_a_batch_over_int8_items_of_several_vectors_is_scanned_as_one_query_is() -> None:
    rng = np.random.default_rng(13)
    whole, scales = quantise(rng.standard_normal((9_000, 64)))
    rows = Rows.of(whole.reshape(3_000, 3, 64), scales.reshape(3_000, 3))
    terms = random_terms(rng, 40, 2, 64, True)
    scorer = Int8Scorer(rows, threads=2)
    for a, b in zip(scorer.topk(terms, 5), CpuScorer(rows, threads=2).topk(terms, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert scorer.statistics.exhaustive == 0  # bytes do not bound items
