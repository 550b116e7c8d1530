"""What passes for the same graph elsewhere, and what does not: by value, at each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from onnx import TensorProto

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import DeviceError
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.parity import FURTHEST, check_parity, computes_in, differences, fault_of
from tests.bundles import GraphBuilder

DIM = 64


class Elsewhere:
    """A graph whose outputs come out changed."""

    def __init__(self, graph: Graph, change: Callable[[Array], Array]) -> None:
        self._graph, self._change = graph, change
        self.inputs, self.outputs = graph.inputs, graph.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._change(value) for name, value in self._graph.run(feeds).items()}


def graph_of(build: Callable[[GraphBuilder], object], shape: list[int]) -> Graph:
    g = GraphBuilder()
    build(g)
    made = g.model({"image": ("f32", ["n", 32])}, {"embedding": ("f32", ["n", *shape])})
    return OnnxBackend("cpu", 1).load("image", Model(made))


def linear(g: GraphBuilder) -> object:
    g.constant("weight", np.random.default_rng(0).standard_normal((32, DIM)))
    return g.add("MatMul", ["image", "weight"], "embedding")


def two_vectors(g: GraphBuilder) -> object:
    """The second a thousandth of the first."""
    g.constant("weight", np.random.default_rng(0).standard_normal((32, DIM)) * np.repeat([1, 1e-3], DIM // 2))
    g.constant("shape", [0, 2, DIM // 2], np.int64)
    return g.add("Reshape", [g.add("MatMul", ["image", "weight"], "both"), "shape"], "embedding")


def held(reference: Graph, change: Callable[[Array], Array], precision: str) -> float:
    found = check_parity("the graph", Elsewhere(reference, change), reference, precision, 8, 8, "use another")
    return float(found["furthest"])


def one_value(by: float) -> Callable[[Array], Array]:
    def change(value: Array) -> Array:
        spoilt = value.copy()
        spoilt[..., 3] += by * np.abs(value).max(-1)
        return spoilt

    return change


@pytest.mark.parametrize("precision", list(FURTHEST))
def test_what_rounding_makes_passes_and_more_does_not(precision: str) -> None:
    reference, most = graph_of(linear, [DIM]), FURTHEST[precision]
    assert held(reference, lambda value: value, precision) == 0
    for change in (one_value(0.9 * most), lambda value: value * np.float32(1 - 0.9 * most)):
        assert held(reference, change, precision) == pytest.approx(0.9 * most, rel=0.01)
    for change, said in (
        (one_value(1.2 * most), r"rows differ by [\d.]+ of a row's largest value \(cosine (1\.0|0\.99)"),
        (lambda value: value * np.float32(1 - 1.2 * most), r"cosine 1\.00000\), expected at most"),
        (lambda value: np.zeros_like(value), "rows differ by 1 of"),
        (lambda value: np.where(np.arange(DIM) == 9, np.nan, value), "NaN, infinity"),
        (lambda value: np.where(np.arange(DIM) == 9, np.inf, value), "NaN, infinity"),
        (lambda value: value[:, :-1], r"shape \(1, 63\), expected \(1, 64\)"),
    ):
        with pytest.raises(
            DeviceError, match=f"^the graph gives another 'embedding' than .*{said}.*; use another"
        ):
            held(reference, change, precision)


def test_a_small_vector_of_a_row_is_not_hidden_by_a_large_one() -> None:
    reference = graph_of(two_vectors, [2, DIM // 2])

    def wrong(value: Array) -> Array:
        return value * np.array([[[1.0], [-1.0]]], np.float32)

    with pytest.raises(DeviceError, match="rows differ by 2 of"):
        held(reference, wrong, "float32")


def test_nothing_is_held_against_what_is_no_number() -> None:
    reference = graph_of(linear, [DIM])
    broken = Elsewhere(reference, lambda value: value * np.float32(np.nan))
    with pytest.raises(
        DeviceError, match="cannot be held against ONNX Runtime on the CPU: there 'embedding' is NaN"
    ):
        check_parity("the graph", reference, broken, "float32", 8, 8, "use another")


def test_zeros_are_like_zeros_alone() -> None:
    zeros = np.zeros((2, 4))
    assert fault_of(differences(zeros, zeros), 1e-3) is None
    assert fault_of(differences(np.zeros((3, 0)), np.zeros((3, 0))), 1e-3) is None
    fault = fault_of(differences(zeros, np.array([[0, 0, 0, 0], [0, 0, 1e-30, 0]])), 1e-3)
    assert fault == (1, "NaN, infinity, or other numbers in place of zeros")


def test_a_graph_tells_what_it_computes_in() -> None:
    def told(*nodes: tuple[str, dict[str, int]]) -> str:
        g = GraphBuilder()
        g.constant("scale", np.array(0.1))
        value = "image"
        for op, attributes in nodes:
            inputs = [value, "scale"] if op.endswith("Linear") else [value]
            value = g.add(op, inputs, f"{value}_{op}", **attributes)
        g.add("Identity", [value], "embedding")
        shape = {"image": ("f32", ["n", 4])}, {"embedding": ("f32", ["n", 4])}
        return computes_in(read_onnx_model(g.model(*shape)))

    half, whole = ("Cast", {"to": TensorProto.FLOAT16}), ("Cast", {"to": TensorProto.FLOAT})
    quantised = (("QuantizeLinear", {}), ("DequantizeLinear", {}))
    assert told(("Relu", {})) == "float32"
    assert told(half, whole) == "float16"
    assert told(*quantised) == "int8" and told(*quantised, half, whole) == "int8"
