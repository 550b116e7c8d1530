"""Where rows lie: on the GPU, shared with it, or streamed to it; and what runs beside what."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.arguments import Segment
from cir_infer.scoring.cuda.tuning import Tuning
from tests.emulation.emulated import EmulatedDevice
from tests.scoring.cases import check_topk, pack, random_terms, rows_of
from tests.scoring.cuda_rows import ALWAYS, NEVER, gallery, same


@pytest.mark.parametrize(
    ("row_type", "weighted"), [("float32", True), ("float16", True), ("float16", False), ("int8", True)]
)
def test_every_placement_gives_the_same_answer(row_type: str, weighted: bool) -> None:
    rows = gallery(row_type)
    terms = random_terms(np.random.default_rng(1), 3, 2, 72, weighted)
    allow = pack(np.random.default_rng(2).random(900) < 0.8)
    expected = CudaScorer(rows, device=EmulatedDevice(), tuning=NEVER).topk(terms, 40, allow)
    check_topk(expected, terms, rows, 40, allow)
    for device, memory, placement in [
        (EmulatedDevice(checked=True), 40_000, "streamed"),
        (EmulatedDevice(checked=True, integrated=True), 40_000, "shared"),
        (EmulatedDevice(checked=True, integrated=True, mappable=False), 40_000, "shared"),
    ]:
        for tuning in (NEVER, ALWAYS):
            scorer = CudaScorer(rows, device=device, memory=memory, tuning=tuning)
            assert placement in scorer.name
            same(scorer.topk(terms, 40, allow), expected)


@pytest.mark.parametrize("row_type", ["float16", "int8"])
@pytest.mark.parametrize("cuts", [(1,), (63,), (64,), (1, 2, 3)])
def test_a_batch_may_open_on_pieces_of_a_single_row(row_type: str, cuts: tuple[int, ...]) -> None:
    """One block scores such a piece and several the next, on a Jetson whose rows stay where they are."""
    rng = np.random.default_rng(0)
    terms = random_terms(rng, 1, 2, 32, False)
    values = rng.standard_normal((600, 32))
    values[:64] += 2 * terms.numerators[0].sum(axis=0)  # the answer is among the rows that are scored first
    rows = rows_of(values, row_type, cuts)
    device = EmulatedDevice(integrated=True, multiprocessors=8)
    tuning = Tuning(queries=1, rows=0, first_rows=64, least_first_rows=64)
    scorer = CudaScorer(rows, device=device, memory=10_000, tuning=tuning)
    assert "shared" in scorer.name
    check_topk(scorer.topk(terms, 10), terms, rows, 10)


def test_streamed_rows_pass_through_two_buffers() -> None:
    rows, device = gallery(d=64), EmulatedDevice()
    scorer = CudaScorer(rows, device=device, memory=2 * 100 * 128, tuning=NEVER)
    terms = random_terms(np.random.default_rng(1), 1, 2, 64, True)
    check_topk(scorer.topk(terms, 10), terms, rows, 10)
    assert device.launched == ["scan_f16_ratio2"] * 9  # 900 rows, 100 at a time


class Timeline(EmulatedDevice):
    """Knows which work of several streams is ordered, and fails where two pieces that must be are not."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = 1
        self.now: dict[int, dict[int, int]] = {0: {}}  # stream -> what it has seen of each stream
        self.touched: dict[int, list[tuple[int, int, bool]]] = {}  # buffer -> stream, moment, whether written
        self.at_once = 0

    def new_stream(self) -> int:  # type: ignore[override]
        self.streams += 1
        self.now[self.streams] = {}
        return self.streams

    def step(self, stream: Any, buffer: int, writes: bool) -> None:
        own, seen = stream or 0, self.now[stream or 0]
        seen[own] = seen.get(own, 0) + 1
        for other, moment, wrote in self.touched.get(buffer, []):
            if other != own and (writes or wrote):
                assert seen.get(other, 0) >= moment, "a buffer is written while it is read"
        self.touched.setdefault(buffer, []).append((own, seen[own], writes))
        self.at_once += any(
            moment > seen.get(s, 0) for b in self.touched.values() for s, moment, _ in b if s != own
        )

    def upload(self, address: int, array: Any, stream: Any) -> None:
        super().upload(address, array, stream)
        self.step(stream, address, True)

    def launch(self, kernel: str, grid: Any, shared_bytes: int, arguments: Any, stream: Any) -> None:
        super().launch(kernel, grid, shared_bytes, arguments, stream)
        table = ctypes.cast(arguments.segments, ctypes.POINTER(Segment))
        self.step(stream, table[arguments.segment].rows, False)

    def record(self, stream: Any) -> Any:
        return dict(self.now[stream or 0])

    def wait(self, stream: Any, event: Any) -> None:
        seen = self.now[stream or 0]
        for other, moment in event.items():
            seen[other] = max(seen.get(other, 0), moment)

    def synchronize(self, stream: Any) -> None:
        for seen in self.now.values():
            self.wait(None, seen)


def test_streamed_copies_run_under_the_scans_and_never_into_what_is_being_read() -> None:
    rows, device = gallery(d=64), Timeline()
    scorer = CudaScorer(rows, device=device, memory=2 * 100 * 128, tuning=NEVER)
    terms = random_terms(np.random.default_rng(1), 1, 2, 64, True)
    search = scorer.prepare(1, 2, True, 10)
    assert terms.weights is not None
    device.upload(search.numerators, terms.numerators, None)
    device.upload(search.weights, terms.weights, None)
    stream = device.new_stream()
    device.wait(stream, device.record(None))
    device.at_once = 0
    for _ in range(2):  # the second follows without waiting for the first
        search.launch(stream)
    assert device.at_once > 8
    check_topk(search.result(), terms, rows, 10)
    search.close()


class OwnStreams(EmulatedDevice):
    """Streams that can be told from the default one, which is not to be used."""

    def new_stream(self) -> object:  # type: ignore[override]
        return object()

    def upload(self, address: int, array: Any, stream: object) -> None:
        assert stream is not None
        super().upload(address, array, stream)

    def zero(self, address: int, nbytes: int, stream: object) -> None:
        assert stream is not None
        super().zero(address, nbytes, stream)

    def synchronize(self, stream: object) -> None:
        assert stream is not None, "to wait for the whole context breaks what another thread captures"
        super().synchronize(stream)


@pytest.mark.parametrize("memory", [None, 2 * 100 * 128])
@pytest.mark.parametrize("row_type", ["float16", "int8"])
def test_nothing_waits_for_streams_of_others(row_type: str, memory: int | None) -> None:
    rows = gallery(row_type, d=64)
    terms = random_terms(np.random.default_rng(1), 3, 2, 64, True)
    for tuning in (NEVER, ALWAYS):
        with CudaScorer(rows, device=OwnStreams(), memory=memory, tuning=tuning) as scorer:
            check_topk(scorer.topk(terms, 8), terms, rows, 8)


def test_streams_are_lent_again() -> None:

    from cir_infer.gpu.context import _Stream, pycuda_stream

    idle: list[Any] = []
    driver = SimpleNamespace(Stream=lambda flags: SimpleNamespace(handle=7, flags=flags))
    first, second = _Stream(driver, idle), _Stream(driver, idle)
    plain = pycuda_stream(first)
    assert plain is not pycuda_stream(second) and (first.handle, plain.flags) == (7, 1)
    del first
    assert idle == [plain] and pycuda_stream(_Stream(driver, idle)) is plain
    assert pycuda_stream(None) is None and pycuda_stream(plain) is plain


def test_streamed_rows_serve_a_k_beyond_one_pass() -> None:
    rows = gallery(n=1300, d=16)
    scorer = CudaScorer(rows, device=EmulatedDevice(), memory=30_000, tuning=NEVER)
    terms = random_terms(np.random.default_rng(1), 2, 1, 16, False)
    check_topk(scorer.topk(terms, 1200), terms, rows, 1200)


def test_an_int8_shadow_answers_for_rows_that_stay_on_the_host() -> None:
    rows = gallery("float32", n=1500)
    scorer = CudaScorer(rows, device=EmulatedDevice(), memory=1500 * 80 + 1000, tuning=ALWAYS, scan="int8")
    assert scorer.name == "cuda (sm_75, int8 scan, streamed)"
    for weighted in (True, False):
        terms = random_terms(np.random.default_rng(1), 2, 2, 72, weighted)
        check_topk(scorer.topk(terms, 8), terms, rows, 8)
    assert scorer.statistics.batched == 4


class OfSoMuch(EmulatedDevice):
    """An integrated GPU with so many bytes free beside the reserve."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(integrated=True)
        self.free = nbytes + (256 << 20)

    def free_bytes(self) -> int:
        return self.free


def test_an_integrated_gpu_has_rows_in_its_own_memory_where_they_fit_twice() -> None:
    rows = gallery(d=64)  # 900 rows of 128 bytes
    terms = random_terms(np.random.default_rng(1), 1, 1, 64, False)
    before = CudaScorer(rows, device=OfSoMuch(2 * 900 * 128), tuning=NEVER)
    assert before.name == "cuda (sm_75)"
    answer = before.topk(terms, 5)
    check_topk(answer, terms, rows, 5)
    same(CudaScorer(rows, device=OfSoMuch(2 * 900 * 128 - 2), tuning=NEVER).topk(terms, 5), answer)
    assert "shared" in CudaScorer(rows, device=OfSoMuch(2 * 900 * 128 - 2)).name
    assert "shared" not in CudaScorer(rows, device=OfSoMuch(1 << 20), memory=900 * 128).name
    rows.blocks[1][5] = (100 * terms.numerators[0, 0]).astype(np.float16)
    same(before.topk(terms, 5), answer)  # a copy: what changes outside does not change the answer


def test_rows_that_do_not_fit_an_integrated_gpu_are_not_copied() -> None:
    rows, device = gallery(d=64), EmulatedDevice(integrated=True)
    scorer = CudaScorer(rows, device=device, memory=1000, tuning=NEVER)
    # The GPU reads the caller's memory: what changes there changes the answer.
    terms = random_terms(np.random.default_rng(1), 1, 1, 64, False)
    rows.blocks[1][5] = (100 * terms.numerators[0, 0]).astype(np.float16)
    assert scorer.topk(terms, 1).rows[0, 0] == 205
