"""The conformance suite on a real GPU through PyCUDA, for `make gpu-check`; skipped where there is none."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import DeviceError
from cir_infer.gpu.context import open_device
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from tests.scoring.cases import check_topk, random_terms, rows_of
from tests.scoring.conformance import ScorerConformance


def reason() -> str:
    try:
        open_device()
    except DeviceError as error:
        return str(error)
    return ""


if reason():
    # At once, and not for each of a thousand cases.
    pytest.skip(reason(), allow_module_level=True)

NEVER = Tuning(queries=10**9, rows=0)
ALWAYS = Tuning(queries=1, rows=0, first_rows=16, least_first_rows=8, list_capacity=64, most_listed=0)


class TestExactKernel(ScorerConformance):
    def make(self, rows: Rows) -> CudaScorer:
        return CudaScorer(rows, tuning=NEVER)


class TestTensorCores(ScorerConformance):
    def make(self, rows: Rows) -> CudaScorer:
        return CudaScorer(rows, tuning=ALWAYS)


class TestInt8Shadow(ScorerConformance):
    row_types = ("float32", "float16")

    def make(self, rows: Rows) -> CudaScorer:
        return CudaScorer(rows, tuning=ALWAYS, scan="int8")


class TestAsShipped(ScorerConformance):
    def make(self, rows: Rows) -> CudaScorer:
        return CudaScorer(rows)


@pytest.mark.parametrize("row_type", ["float32", "float16", "int8"])
def test_streamed_rows(row_type: str) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng.standard_normal((30_000, 128)), row_type)
    terms = random_terms(rng, 4, 2, 128, True)
    scorer = CudaScorer(rows, memory=1 << 20, tuning=NEVER)
    # An integrated GPU reads rows that do not fit where they are.
    assert ("shared" if open_device().integrated else "streamed") in scorer.name
    for _ in range(5):
        check_topk(scorer.topk(terms, 50), terms, rows, 50)


def test_streamed_searches_may_follow_each_other_without_waiting() -> None:
    rng = np.random.default_rng(4)
    rows = rows_of(rng.standard_normal((30_000, 128)), "float16")
    terms = random_terms(rng, 1, 2, 128, True)
    scorer, device = CudaScorer(rows, memory=1 << 20, tuning=NEVER), open_device()
    search = scorer.prepare(1, 2, True, 50)
    assert terms.weights is not None
    with device.active():
        device.upload(search.numerators, terms.numerators, None)
        device.upload(search.weights, terms.weights, None)
        device.synchronize(None)
        stream = device.new_stream()
        for _ in range(20):
            search.launch(stream)
        device.synchronize(stream)
        check_topk(search.result(), terms, rows, 50)
        search.close()


def test_large_batches_agree_with_the_exact_kernel_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    rows = rows_of(rng.standard_normal((200_000, 512)), "float16")
    terms = random_terms(rng, 200, 2, 512, True)
    exact = CudaScorer(rows, tuning=NEVER).topk(terms, 50)
    for scorer in (CudaScorer(rows, tuning=Tuning(1, 0)), CudaScorer(rows, tuning=Tuning(1, 0), scan="int8")):
        for got, expected in zip(scorer.topk(terms, 50), exact, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert scorer.statistics.batched == 200


def test_scorers_in_several_threads_at_once() -> None:
    rng = np.random.default_rng(2)
    rows = rows_of(rng.standard_normal((20_000, 256)), "float16")
    terms = random_terms(rng, 8, 2, 256, True)
    scorers = [CudaScorer(rows) for _ in range(4)]
    expected = scorers[0].topk(terms, 20)
    answers: dict[int, Any] = {}

    def ask(i: int) -> None:
        for _ in range(20):
            answers[i] = scorers[i].topk(terms, 20)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        for got, want in zip(answers[i], expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_shares_the_primary_context_with_pytorch_and_is_captured_into_its_graphs() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    rng = np.random.default_rng(3)
    rows = rows_of(rng.standard_normal((50_000, 512)), "float16")
    terms = random_terms(rng, 1, 2, 512, True)
    scorer, device = CudaScorer(rows), open_device()
    expected = scorer.topk(terms, 50)
    search = scorer.prepare(1, 2, True, 50)
    assert terms.weights is not None
    held = torch.ones(1000, device="cuda")
    with device.active():
        device.upload(search.numerators, terms.numerators, None)
        device.upload(search.weights, terms.weights, None)
        search.launch(None)  # loads the kernels, which a capture must not do
        device.synchronize(None)
        graph = torch.cuda.CUDAGraph()
        # PyCUDA takes streams of its own only; PyTorch takes any.
        own = device.new_stream()
        with torch.cuda.graph(graph, stream=torch.cuda.ExternalStream(own.handle)):
            search.launch(own)
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        for got, want in zip(search.result(), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        search.close()
    assert float(held.sum()) == 1000
