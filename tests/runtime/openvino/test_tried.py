"""What OpenVINO makes of a graph is held against ONNX Runtime before it is used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError
from cir_infer.extras import is_installed
from cir_infer.runtime import parity
from cir_infer.runtime.graph import Array
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.parity import FURTHEST
from tests.bundles import GraphBuilder
from tests.runtime.kept.bundled import FEEDS, encoder

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)

from cir_infer.runtime.openvino import backend as backends
from cir_infer.runtime.openvino.api import OpenVinoDevice, Requests
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
    ("device", "made"),
    [
        ("openvino", quantised),
        ("openvino", encoder),
        ("openvino-gpu", quantised),
        ("openvino-gpu", encoder),
    ],
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


def lower(kind: int, as_numbers: bool = False) -> bytes:
    """`encoder` with its weights in float16 or bfloat16, each behind a cast, and what it gives in float16."""
    model = onnx.load_from_string(encoder())
    nodes = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        name, raw = f"{tensor.name}_stored", not as_numbers
        if kind == TensorProto.FLOAT16:
            given: Any = values.astype(np.float16).tobytes() if raw else values.ravel().tolist()
        else:  # rounded towards zero
            given = (values.view(np.uint32) >> 16).astype("<u2").tobytes() if raw else values.ravel().tolist()
        stored = helper.make_tensor(name, kind, tensor.dims, given, raw)
        nodes.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(stored)
    nodes.extend(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


_LOWER = {
    "float32": encoder,
    "float16": partial(lower, TensorProto.FLOAT16),
    "bfloat16": partial(lower, TensorProto.BFLOAT16),
    "int8": quantised,
}


@pytest.mark.parametrize("device", ["openvino", "openvino-gpu"])
@pytest.mark.parametrize("precision", list(_LOWER))
@pytest.mark.parametrize("wrong", ["one value", "length", "zeros", "NaN"])
def test_every_precision_is_held_by_value(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, wrong: str
) -> None:
    """One value of a row, or its length, leaves a cosine that passes for a rounding."""
    monkeypatch.setitem(backends.PLACES, "openvino-gpu", "CPU")
    if precision == "bfloat16" and (device != "openvino" or not OpenVinoDevice().computes_bfloat16):
        pytest.skip("no bfloat16 there")
    model, run = Model(_LOWER[precision]()), Requests.run
    assert OpenVinoBackend(1, precision, device).load("image", model).run(FEEDS)["embedding"].shape == (3, 48)

    def wrongly(self: Requests, values: list[Array]) -> list[Array]:
        (rows,) = run(self, values)
        by = 1.4 * FURTHEST[precision]
        if wrong == "one value":
            rows[:, 5] += by * np.abs(rows).max(1)
        else:
            rows *= {"length": 1 + by, "zeros": 0.0, "NaN": np.nan}[wrong]
        return [rows]

    monkeypatch.setattr(Requests, "run", wrongly)
    # No other device takes a bundle in bfloat16.
    instead = "use the float32 bundle" if precision == "bfloat16" else "use device='cpu'"
    said = f"image graph gives another 'embedding' than ONNX Runtime on the CPU: .*; {instead}$"
    with pytest.raises(DeviceError, match=said):
        OpenVinoBackend(1, precision, device).load("image", model)


@pytest.mark.skipif(not OpenVinoDevice().computes_bfloat16, reason="no bfloat16 here")
def test_bfloat16_that_openvino_reads_otherwise_is_refused() -> None:
    """OpenVINO 2026.4 takes bfloat16 that is stored as a list of numbers for something else."""
    with pytest.raises(DeviceError, match="another 'embedding' than ONNX Runtime on the CPU: rows differ by"):
        OpenVinoBackend(1, "bfloat16").load("image", Model(lower(TensorProto.BFLOAT16, as_numbers=True)))


def test_a_float32_graph_of_a_lower_bundle_is_held_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose is float32 in every bundle, and most text encoders of those in int8."""
    run = Requests.run
    monkeypatch.setattr(Requests, "run", lambda self, values: [part * 1.01 for part in run(self, values)])
    for precision in ("int8", "float16", "bfloat16"):
        if precision == "bfloat16" and not OpenVinoDevice().computes_bfloat16:
            continue
        with pytest.raises(DeviceError, match=r"by 0\.01 of .*expected at most 0\.001"):
            OpenVinoBackend(1, precision).load("image", Model(encoder()))


def of_bytes() -> bytes:
    """Bytes whose sums go beyond 255, beside values that all rows have in common."""
    g = GraphBuilder()
    g.constant("more", 200, np.uint8)
    g.constant("common", np.linspace(50_000, 90_000, 16))
    g.add("Add", ["image", "more"], "sums")
    g.add("Cast", ["sums"], "numbers", to=1)
    g.add("Add", ["numbers", "common"], "embedding")
    return g.model({"image": ("u8", ["n", 16])}, {"embedding": ("f32", ["n", 16])})


def pooling(ceil: int) -> bytes:
    """A mean that counts its padding, and at the end what lies beyond that."""
    g = GraphBuilder()
    pads = {"kernel_shape": [5], "strides": [3], "pads": [2, 2], "ceil_mode": ceil, "count_include_pad": 1}
    g.constant("shape", [0, 1, 18], np.int64)
    g.add("AveragePool", [g.add("Reshape", ["image", "shape"], "line")], "means", **pads)
    g.add("Flatten", ["means"], "embedding", axis=1)
    return g.model({"image": ("f32", ["n", 18])}, {"embedding": ("f32", ["n", 7 if ceil else 6])})


@pytest.mark.parametrize(
    ("made", "told"),
    [(of_bytes, r"differ by 0\.00\d+ of a row's largest"), (lambda: pooling(1), r"cosine 0\.9")],
)
def test_what_openvino_computes_otherwise_in_float32_is_refused(made: Any, told: str) -> None:
    """Sums of bytes end at 255 there, where ONNX's go round; a cosine does not tell such rows apart."""
    with pytest.raises(DeviceError, match=f"another 'embedding' than ONNX Runtime on the CPU: .*{told}"):
        OpenVinoBackend(1).load("image", Model(made()))


def test_what_it_computes_rightly_is_not() -> None:
    feeds = {"image": np.random.default_rng(0).normal(size=(3, 18)).astype(np.float32)}
    model = Model(pooling(0))
    found = OpenVinoBackend(1).load("image", model).run(feeds)["embedding"]
    np.testing.assert_allclose(
        found, OnnxBackend("cpu", 1).load("image", model).run(feeds)["embedding"], 1e-5
    )


def test_an_input_that_nothing_reads_is_none() -> None:
    """OpenVINO leaves it out: a text encoder that takes no lengths did not open there."""
    g = GraphBuilder()
    g.constant("table", np.random.default_rng(0).normal(size=(9, 4)))
    g.add("ReduceMean", [g.add("Gather", ["table", "tokens"], "words")], "text", axes=[1], keepdims=0)
    inputs = {"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}
    model = Model(g.model(inputs, {"text": ("f32", ["n", 4])}))
    graph = OpenVinoBackend(1).load("text", model)
    assert [tensor.name for tensor in graph.inputs] == ["tokens"]
    feeds = {"tokens": np.array([[1, 2, 3], [4, 5, 6]], np.int32)}
    whole = {**feeds, "lengths": np.array([3, 2], np.int32)}
    expected = OnnxBackend("cpu", 1).load("text", model).run(whole)["text"]
    np.testing.assert_allclose(graph.run(feeds)["text"], expected, 1e-5)


def test_nothing_of_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cir_infer.runtime.kept.graphs import load_kept
    from cir_infer.runtime.kept.names import StoredGraph

    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    monkeypatch.setitem(parity.FURTHEST, "int8", -1.0)
    model = quantised()
    stored = StoredGraph("0" * 64, len(model), None, lambda: Model(model))
    with pytest.raises(DeviceError, match="gives another"):
        load_kept(OpenVinoBackend(1), "image", stored, least=0)
    assert not list((tmp_path / "graphs").iterdir())


@pytest.mark.parametrize(("kind", "shape"), [("u8", ["n", 16]), ("i32", ["n", 16]), ("i32", ["n", 3, 3, 3])])
def test_a_graph_of_odd_inputs_can_be_tried(kind: str, shape: list[Any]) -> None:
    """Whether a bundle may have them is said afterwards."""
    g = GraphBuilder()
    g.add("Flatten", [g.add("Cast", ["image"], "numbers", to=1)], "embedding", axis=1)
    made = g.model({"image": (kind, shape)}, {"embedding": ("f32", ["n", int(np.prod(shape[1:]))])})
    assert OpenVinoBackend(1).load("image", Model(made)).inputs[0].name == "image"


def test_a_graph_that_makes_nothing_can_be_tried() -> None:
    g = GraphBuilder()
    g.constant("less", [0, -8, 0, -8], np.int64)
    g.add("Pad", ["image", "less"], "embedding")
    made = g.model({"image": ("f32", ["n", 16])}, {"embedding": ("f32", ["n", 0])})
    assert OpenVinoBackend(1).load("image", Model(made)).outputs[0].shape[1:] == (0,)
