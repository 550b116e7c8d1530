"""Which kernels run, and what happens when lists, memory or the GPU do not suffice."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cir_infer.gpu
from cir_infer.errors import DeviceError, ScoringError
from cir_infer.gpu import context
from cir_infer.gpu.context import open_device
from cir_infer.gpu.driver import missing_gpu
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda import scorer as scorer_module
from cir_infer.scoring.cuda.arguments import ReadArguments
from cir_infer.scoring.cuda.shapes import shared_out
from cir_infer.scoring.cuda.tuning import MEASURED, PREDICTED, UNMEASURED, Tuning, tuning_for
from tests.emulation.emulated import EmulatedDevice
from tests.scoring.cases import check_topk, random_terms, rows_of
from tests.scoring.cuda_rows import ALWAYS, NEVER, gallery, same


def test_is_a_scorer() -> None:
    assert isinstance(CudaScorer(gallery(), device=EmulatedDevice()), Scorer)


@pytest.mark.parametrize("tuning", [NEVER, ALWAYS])
def test_a_query_is_not_held_to_what_the_former_one_found(tuning: Tuning) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng.standard_normal((900, 24)), "float16")
    former, terms = random_terms(rng, 1, 2, 24, False), random_terms(rng, 1, 2, 24, False)
    scorer = CudaScorer(rows, device=EmulatedDevice(multiprocessors=8), tuning=tuning)
    scorer.topk(dataclasses.replace(former, numerators=100 * former.numerators), 20)
    check_topk(scorer.topk(terms, 20), terms, rows, 20)


class Interrupted(EmulatedDevice):
    """Someone presses Ctrl-C once, before one of the launches."""

    left = 0

    def launch(self, kernel: str, grid: Any, shared_bytes: int, arguments: Any, stream: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        super().launch(kernel, grid, shared_bytes, arguments, stream)


@pytest.mark.parametrize(("tuning", "memory"), [(NEVER, 20_000), (ALWAYS, None)])
def test_a_search_that_was_interrupted_leaves_nothing_to_the_next(tuning: Tuning, memory: int | None) -> None:
    rng = np.random.default_rng(4)
    rows = rows_of(rng.standard_normal((900, 24)), "float16")
    better, terms = random_terms(rng, 3, 2, 24, False), random_terms(rng, 3, 2, 24, False)
    better = dataclasses.replace(better, numerators=100 * better.numerators)  # floors too high for others
    device = Interrupted(multiprocessors=4)
    scorer = CudaScorer(rows, device=device, memory=memory, tuning=tuning)
    before = len(device.launched)
    scorer.topk(better, 20)
    launches = len(device.launched) - before
    assert launches > 3
    for at in range(2, launches + 1):
        device.left = at
        with pytest.raises(KeyboardInterrupt):
            scorer.topk(better, 20)
        check_topk(scorer.topk(terms, 20), terms, rows, 20)


@pytest.mark.parametrize("tuning", [NEVER, ALWAYS])
@pytest.mark.parametrize("row_type", ["float16", "int8"])
def test_no_result_depends_on_a_race_or_on_memory_nothing_wrote(row_type: str, tuning: Tuning) -> None:
    rows = gallery(row_type, n=500, d=48)
    terms = random_terms(np.random.default_rng(1), 3, 2, 48, True)
    answers = []
    for schedule, filling in [(0, 0xFF), (1, 0x00), (2, 0xA5), (3, 0xFF), (4, 0x3C)]:
        device = EmulatedDevice(schedule=schedule, filling=filling, checked=True)
        answers.append(CudaScorer(rows, device=device, tuning=tuning).topk(terms, 30))
    check_topk(answers[0], terms, rows, 30)
    for answer in answers[1:]:
        same(answer, answers[0])


@pytest.mark.parametrize(
    ("shared_bytes", "kernels"),
    [
        (15_000, {"scan_f16_ratio_any"}),
        (20_000, {"scan_f16_ratio_any", "few_f16_ratio2", "pack_ratio"}),
        (24_000, {"scan_f16_ratio2", "few_f16_ratio2", "pack_ratio"}),
        (65_536, {"scan_f16_ratio2", "many_f16_ratio2", "pack_ratio"}),
        (232_448, {"scan_f16_ratio2", "many_f16_ratio2", "pack_ratio"}),
    ],
)
def test_kernels_fit_the_shared_memory_there_is(shared_bytes: int, kernels: set[str]) -> None:
    rows, device = gallery(d=256, n=400), EmulatedDevice(shared_bytes=shared_bytes)
    terms = random_terms(np.random.default_rng(1), 40, 2, 256, True)
    check_topk(CudaScorer(rows, device=device, tuning=ALWAYS).topk(terms, 5), terms, rows, 5)
    assert {k for k in device.launched if not k.startswith("survey")} == kernels


def test_one_query_of_a_gallery_in_one_piece_is_one_launch() -> None:
    rows, device = gallery(), EmulatedDevice()
    scorer = CudaScorer(rows, device=device)
    device.launched.clear()
    scorer.topk(random_terms(np.random.default_rng(1), 1, 2, 72, True), 50)
    assert device.launched == ["scan_f16_ratio2"]


def test_lists_that_overflow_are_rescued() -> None:
    """Rows that get better and better: every row of a stage beats the floor of the one before."""
    rng = np.random.default_rng(3)
    terms = random_terms(rng, 3, 1, 32, False)
    # Only the first query's floor rises; the lists of the others suffice.
    rise = np.linspace(-1, 1, 2000)[:, None] * terms.numerators[0, 0]
    rows = rows_of(rise + 1e-3 * rng.standard_normal((2000, 32)), "float16")
    scorer = CudaScorer(rows, device=EmulatedDevice(checked=True), tuning=ALWAYS)
    for _ in range(2):
        check_topk(scorer.topk(terms, 20), terms, rows, 20)
    assert scorer.statistics.rescued >= 2
    assert scorer.statistics.queries == scorer.statistics.batched == 6


@pytest.mark.parametrize("scan", ["stored", "int8"])
def test_random_rows_need_no_rescue(scan: Any) -> None:
    rows = gallery("float16", n=4000, d=64)
    scorer = CudaScorer(rows, device=EmulatedDevice(), tuning=ALWAYS, scan=scan)
    for weighted in (True, False):
        terms = random_terms(np.random.default_rng(4), 9, 2, 64, weighted)
        check_topk(scorer.topk(terms, 10), terms, rows, 10)
    assert scorer.statistics == (18, 18, 0)


def test_scales_that_are_zero_negative_or_not_finite() -> None:
    rng = np.random.default_rng(5)
    scales = rng.standard_normal(300).astype(np.float32)
    scales[::7] = 0
    scales[3::31] = np.nan
    scales[5::31] = np.inf
    rows = Rows.of(rng.integers(-127, 128, (300, 64)).astype(np.int8), scales)
    for tuning in (NEVER, ALWAYS):
        scorer = CudaScorer(rows, device=EmulatedDevice(), tuning=tuning)
        for weighted in (True, False):
            terms = random_terms(rng, 9, 1, 64, weighted)
            check_topk(scorer.topk(terms, 12), terms, rows, 12)


def test_a_large_batch_is_answered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "_MOST_QUERIES", 4)
    rows = gallery(n=100)
    terms = random_terms(np.random.default_rng(1), 10, 2, 72, True)
    check_topk(CudaScorer(rows, device=EmulatedDevice()).topk(terms, 5), terms, rows, 5)


def test_a_prepared_search_reads_terms_where_they_are() -> None:
    rows, device = gallery(), EmulatedDevice()
    with CudaScorer(rows, device=device, tuning=ALWAYS) as scorer:
        terms = random_terms(np.random.default_rng(1), 2, 2, 72, True)
        expected = scorer.topk(terms, 10)
        search = scorer.prepare(2, 2, True, 10)
        assert terms.weights is not None
        device.upload(search.numerators, terms.numerators, None)
        device.upload(search.weights, terms.weights, None)
        for _ in range(3):
            search.launch(None)
            same(search.result(), expected)
        search.close()
        with pytest.raises(ScoringError, match="expected 1 to 4096 queries"):
            scorer.prepare(0, 2, True, 10)


def test_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device, live = EmulatedDevice(), set()

    def allocate(nbytes: int, real: Any = device.allocate) -> Any:
        memory = real(nbytes)
        live.add(memory.address)
        free = memory.free
        memory.free = lambda: (live.discard(memory.address), free())
        return memory

    device.allocate = device.allocate_host = allocate
    scorer = CudaScorer(gallery(n=80), device=device)
    for k in range(1, 20):  # more shapes than are kept
        scorer.topk(random_terms(np.random.default_rng(1), 1, 2, 72, True), k)
    held = len(live)
    for k in range(1, 20):
        scorer.topk(random_terms(np.random.default_rng(1), 1, 2, 72, True), k)
    assert len(live) == held
    scorer.close()
    scorer.close()
    assert not live
    with pytest.raises(ScoringError, match="closed"):
        scorer.topk(random_terms(np.random.default_rng(1), 1, 2, 72, True), 1)
    forgotten = CudaScorer(gallery(n=80), device=device)
    forgotten.topk(random_terms(np.random.default_rng(1), 1, 2, 72, True), 3)
    assert live
    del forgotten
    gc.collect()
    assert not live


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(ScoringError, match="scan is 'fast'"):
        CudaScorer(gallery(), device=EmulatedDevice(), scan="fast")  # type: ignore[arg-type]
    with pytest.raises(ScoringError, match="int8 shadow of int8 rows"):
        CudaScorer(gallery("int8"), device=EmulatedDevice(), scan="int8")
    many: Any = SimpleNamespace(count=2**32 - 1000, dtype=np.dtype(np.int8), dimension=16, has_tokens=False)
    with pytest.raises(ScoringError, match="at most 4293918720, split"):
        CudaScorer(many, device=EmulatedDevice())
    with pytest.raises(DeviceError, match="no room for two rows"):
        CudaScorer(gallery(), device=EmulatedDevice(), memory=100)
    with pytest.raises(DeviceError, match="shadow of 900 rows"):
        CudaScorer(gallery(), device=EmulatedDevice(), memory=100, scan="int8")


def test_kernels_that_were_not_compiled_are_named_with_the_ways_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(context, "open_gpu", lambda ordinal: None)
    monkeypatch.setattr(cir_infer.gpu, "__path__", [str(tmp_path)])
    with pytest.raises(DeviceError) as caught:
        open_device.__wrapped__()
    said = str(caught.value)
    assert "kernels.fatbin is missing" in said and str(tmp_path) in said
    assert "nvcc is on the PATH" in said and "make fatbin" in said


def test_compiled_kernels_are_found_beside_the_sources_and_where_they_were_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An editable install puts what it compiles elsewhere; the older of two is of older kernels."""
    loaded: list[bytes] = []
    monkeypatch.setattr(context, "open_gpu", lambda ordinal: SimpleNamespace(load_kernels=loaded.append))
    monkeypatch.setattr(cir_infer.gpu, "__path__", [str(tmp_path / "sources"), str(tmp_path / "installed")])
    made = ("installed", b"installed"), ("sources", b"made"), ("installed", b"installed again")
    for age, (folder, content) in enumerate(made):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "kernels.fatbin").write_bytes(content)
        os.utime(tmp_path / folder / "kernels.fatbin", ns=(age, age))
        open_device.__wrapped__()
    assert loaded == [b"installed", b"made", b"installed again"]


@pytest.mark.skipif(missing_gpu() is None, reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_so() -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*use the CPU scorer"):
        open_device()


def test_untuned_architectures_say_so() -> None:
    assert tuning_for(1) is UNMEASURED and UNMEASURED.source == "unmeasured"
    assert all(t.source != "unmeasured" for t in MEASURED.values())
    assert tuning_for(87).source == "predicted" and not MEASURED.keys() & PREDICTED.keys()


@pytest.mark.parametrize(
    ("row_type", "n", "way"), [("int8", 900, "few"), ("int8", 700, "scan"), ("float16", 900, "scan")]
)
def test_one_query_on_many_int8_rows_may_go_through_the_tensor_cores(row_type: str, n: int, way: str) -> None:
    rows, device = gallery(row_type, n=n), EmulatedDevice(checked=True)
    tuning = dataclasses.replace(NEVER, int8_queries=1, int8_rows=800, first_rows=64, least_first_rows=64)
    terms = random_terms(np.random.default_rng(1), 1, 2, 72, True)
    check_topk(CudaScorer(rows, device=device, tuning=tuning).topk(terms, 20), terms, rows, 20)
    assert any(kernel.startswith("few_i8") for kernel in device.launched) == (way == "few")


def test_no_rows_and_no_queries() -> None:
    empty = CudaScorer(Rows.of(np.empty((0, 8), np.float16)), device=EmulatedDevice())
    got = empty.topk(random_terms(np.random.default_rng(0), 2, 1, 8, False), 3)
    assert (got.rows == -1).all() and got.terms.shape == (2, 3, 1)
    none = QueryTerms(np.empty((0, 1, 72), np.float32), None, ("a",))
    assert CudaScorer(gallery(), device=EmulatedDevice()).topk(none, 3).rows.shape == (0, 3)


@pytest.mark.parametrize("vectors", [1, 700, 5000])
def test_the_read_kernel_reads_every_byte(vectors: int) -> None:
    device = EmulatedDevice()
    data, mixed = device.allocate(vectors * 16), device.allocate(2 * 256 * 4)
    words = np.random.default_rng(0).integers(0, 2**32, vectors * 4, dtype=np.uint32)
    device.upload(data.address, words, None)
    device.launch("read_bytes", (2, 1), 0, ReadArguments(data.address, mixed.address, vectors), None)
    assert np.bitwise_xor.reduce(mixed.array.view(np.uint32)) == np.bitwise_xor.reduce(words)
    data.free()
    mixed.free()


@pytest.mark.parametrize("k", [50, 500])
def test_the_best_rows_may_lie_in_few_blocks_or_in_all(k: int) -> None:
    """Rising scores: each block has k keys that beat all before it, so no block's best bounds the answer."""
    rng, n = np.random.default_rng(5), 16 * 768
    terms = random_terms(rng, 1, 1, 16, False)
    along = terms.numerators[0, 0] / np.linalg.norm(terms.numerators[0, 0])
    noise = 0.01 * rng.standard_normal((n, 16))
    strengths = (np.linspace(0, 1, n), np.linspace(1, 0, n), rng.random(n))
    for strength in strengths if k == 50 else strengths[:1]:
        values = noise + strength[:, None] * along
        rows = rows_of(values.astype(np.float32), "float32", ())
        scorer = CudaScorer(rows, device=EmulatedDevice(checked=True, multiprocessors=8), tuning=NEVER)
        check_topk(scorer.topk(terms, k), terms, rows, k)


class AllAtOnce(EmulatedDevice):
    """All blocks are on the machine together and take turns, as far as it has room for them."""

    def launch(self, kernel: str, grid: Any, shared_bytes: int, arguments: Any, stream: Any) -> None:
        together = grid[0] * grid[1] <= 32
        self._launch(self._machine, kernel, grid, shared_bytes, arguments, together=together)
        if kernel.startswith("scan"):
            size = arguments.key_capacity
            keys = np.ctypeslib.as_array((ctypes.c_uint64 * size).from_address(arguments.keys))
            self.handed_on = int(np.count_nonzero(keys))


@pytest.mark.parametrize("k", [10, 50])
def test_blocks_hand_on_few_keys_beyond_k(k: int) -> None:
    rng = np.random.default_rng(k)
    rows = rows_of(rng.standard_normal((40_000, 8)), "float16")
    device = AllAtOnce(multiprocessors=16, schedule=2, filling=0)
    scorer, terms = CudaScorer(rows, device=device, tuning=NEVER), random_terms(rng, 1, 2, 8, True)
    check_topk(scorer.topk(terms, k), terms, rows, k)
    assert k <= device.handed_on <= 2 * k + 64


@pytest.mark.parametrize("multiprocessors", [8, 16, 40, 58, 132])
@pytest.mark.parametrize("k", [10, 50, 200, 1000])
def test_few_keys_reach_the_merging_block(multiprocessors: int, k: int) -> None:
    """block_keys.cuh's rule on scores of a million rows, if no block is faster than another."""
    run, blocks = shared_out(1_000_000, 2 * multiprocessors)
    share = -(-3 * k // (2 * blocks))
    stripes = -(-1_000_000 // (run * blocks))
    runs = stripes - 1  # when they last heard of one another
    scores = np.random.default_rng(k).random(1_000_000)
    so_far = scores[: runs * blocks * run].reshape(runs, blocks, run).swapaxes(0, 1).reshape(blocks, -1)
    # A thread may speak for several keys or blocks, with the best of them.
    threads, wanted = 256, -(-k // share)
    peaks = np.sort(of_threads(so_far.T, threads), axis=0)[-share]
    voices = threads // 2 if 4 * wanted <= blocks else threads
    floor = np.sort(of_threads(peaks[:, None], voices)[:, 0])[-wanted]
    assert k <= (scores >= floor).sum() <= 2 * k + 64


def of_threads(values: np.ndarray[Any, Any], threads: int) -> np.ndarray[Any, Any]:
    """The best of what each thread looks at, (threads, n), of values (m, n)."""
    padded = np.full((-(-len(values) // threads) * threads, values.shape[1]), -np.inf)
    padded[: len(values)] = values
    return padded.reshape(-1, threads, values.shape[1]).max(axis=0)
