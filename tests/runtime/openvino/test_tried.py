"""What OpenVINO makes of a graph in int8, or on a GPU, is held against ONNX Runtime before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError
from cir_infer.extras import is_installed
from tests.bundles import GraphBuilder
from tests.runtime.kept.bundled import FEEDS, encoder

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)

from cir_infer.runtime.openvino import backend as backends
from cir_infer.runtime.openvino.api import OpenVinoDevice
from cir_infer.runtime.openvino.backend import OpenVinoBackend


def quantised(seed: int = 0) -> bytes:
    """Values between two products in int8."""
    g = GraphBuilder()
    random = np.random.default_rng(seed)
    g.constant("first", random.standard_normal((32, 64)))
    g.constant("second", random.standard_normal((64, 48)))
    g.constant("scale", np.array(0.1))
    product = g.add("MatMul", ["image", "first"], "product")
    whole = g.add("QuantizeLinear", [product, "scale"], "whole")
    again = g.add("DequantizeLinear", [whole, "scale"], "again")
    g.add("MatMul", [again, "second"], "embedding")
    return g.model({"image": ("f32", ["n", 32])}, {"embedding": ("f32", ["n", 48])})


@pytest.mark.parametrize(
    ("device", "made"), [("openvino", quantised), ("openvino-gpu", quantised), ("openvino-gpu", encoder)]
)
def test_another_graph_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, made: Any) -> None:
    monkeypatch.setitem(backends.PLACES, "openvino-gpu", "CPU")
    backend = OpenVinoBackend(1, device=device)
    assert backend.load("image", Model(made())).run(FEEDS)["embedding"].shape == (3, 48)
    compiles = OpenVinoDevice.compile

    def wrongly(self: OpenVinoDevice, name: str, model: Model, *others: Any, **named: Any) -> Any:
        return compiles(self, name, Model(made(1)), *others, **named)

    monkeypatch.setattr(OpenVinoDevice, "compile", wrongly)
    with pytest.raises(DeviceError, match="OpenVINO's image graph gives another 'embedding' than") as told:
        backend.load("image", Model(made()))
    assert str(told.value).endswith("use device='cpu'")


def test_nothing_of_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cir_infer.runtime.kept.graphs import load_kept
    from cir_infer.runtime.kept.names import StoredGraph

    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    monkeypatch.setitem(backends.LEAST_COSINE, "int8", 1.1)
    model = quantised()
    stored = StoredGraph("0" * 64, len(model), None, lambda: Model(model))
    with pytest.raises(DeviceError, match="gives another"):
        load_kept(OpenVinoBackend(1), "image", stored, least=0)
    assert not list((tmp_path / "graphs").iterdir())
