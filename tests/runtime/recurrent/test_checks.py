"""What a GPU check asks of the recurrent kernel, on the emulation; its formulas are ONNX Runtime's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.text_graph import match_text_graph
from tests.emulation.emulated import RECURRENT, EmulatedDevice
from tests.gpu.recurrent_checks import check_texts, expected_text, random_feeds, random_text
from tests.runtime.recurrent.graphs import recurrent_graph
from tools.cuda import build_cuda, cuda_sources


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
@pytest.mark.parametrize("over_time", [False, True])
def test_the_formulas_are_onnx_runtimes(op: str, over_time: bool) -> None:
    model = recurrent_graph(op, over_time=over_time, out=5)
    text = match_text_graph(read_onnx_model(model))
    feeds = random_feeds(text, [1, 6, 3])
    found = OnnxBackend("cpu", 1).load("text", Model(model)).run(feeds)["text"]
    for row, length in enumerate(feeds["lengths"]):
        np.testing.assert_allclose(expected_text(text, feeds["tokens"][row, :length]), found[row], atol=1e-6)


def test_the_check_passes_and_finds_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = EmulatedDevice(kernels=RECURRENT, multiprocessors=4)
    text = random_text("lstm", 2, 9, 5, over_time=True, out=7)
    check_texts(gpu, text, [1, 2, 5])
    run = RecurrentEncoder.run
    monkeypatch.setattr(
        RecurrentEncoder, "run", lambda self, feeds: {"text": run(self, feeds)["text"] + 1e-3}
    )
    with pytest.raises(AssertionError, match="1 tokens"):
        check_texts(gpu, text, [1, 2, 5])


# ---- what the compiler said of the kernels


def test_the_table_is_of_these_sources_and_shows_no_spill() -> None:
    kernels = cuda_sources.RECURRENT
    table = json.loads(kernels.table.read_text())
    assert table["sources"] == build_cuda.sources_hash(kernels), (
        "kernels/recurrent changed since its resources were recorded; run tools/cuda/build_cuda.py --update"
    )
    assert set(table["kernels"]) == {"encode_gru", "encode_lstm"}
    for kernel, by_arch in table["kernels"].items():
        assert set(by_arch) == {f"sm_{a}" for a in build_cuda.ARCHITECTURES}, kernel
        for arch, use in by_arch.items():
            assert use["spill_bytes"] == use["stack_bytes"] == 0, (kernel, arch)
            assert use["blocks"] >= 1, (kernel, arch)


def test_the_readme_summarises_the_table() -> None:
    kernels = cuda_sources.RECURRENT
    table, text = json.loads(kernels.table.read_text())["kernels"], kernels.readme.read_text()
    assert build_cuda.with_summary(text, table) == text, "run tools/cuda/build_cuda.py --update"
