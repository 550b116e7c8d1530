"""Int8 graphs are those of ONNX Runtime's quantiser, which is handed no weights here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import compute_data_quant_params, quantize_onnx_initializer

from cir_export.precision import int8
from cir_export.precision.fidelity import cosines
from cir_export.precision.held import becomes, int8_form
from cir_export.precision.int8 import quantisable, to_int8
from cir_export.precision.layers import layers_of, name_nodes
from cir_export.precision.ranges import extremes
from cir_infer.bundle.model import Model
from cir_infer.errors import ExportError
from cir_infer.runtime.onnx import OnnxBackend
from tests.bundles import GraphBuilder


def of_every_kind() -> ModelProto:
    """Products with constants on either side, of two to four axes, shared, transposed, with a bias."""
    g, random = GraphBuilder(), np.random.default_rng(0)

    def weight(name: str, *shape: int) -> str:
        return g.constant(name, random.normal(size=shape) * random.uniform(0.1, 3, shape[-1]))

    g.add(
        "Conv", ["image", weight("one.weight", 6, 3, 3, 3), weight("one.bias", 6)], "map", pads=[1, 1, 1, 1]
    )
    g.add("Relu", ["map"], "positive")
    g.add("Conv", ["positive", weight("two.weight", 6, 6, 1, 1)], "second")
    g.add("Add", ["second", weight("places", 1, 6, 4, 4)], "placed")
    g.constant("rows", [0, 6, 16], np.int64)
    x = g.add("Reshape", ["placed", "rows"], "tokens")
    x = g.add("MatMul", [x, weight("wide.weight", 16, 16)], "wide")
    x = g.add("MatMul", [weight("left", 6, 6), x], "mixed")
    x = g.add("MatMul", [x, weight("deep.weight", 1, 16, 16)], "deep")
    x = g.add("MatMul", [x, "wide.weight"], "again")
    x = g.add("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
    x = g.add("Gemm", [x, weight("plain.weight", 16, 12), weight("plain.bias", 12)], "plain")
    x = g.add("Gemm", [x, weight("turned.weight", 10, 12)], "turned", transB=1)
    x = g.add("MatMul", [x, weight("square", 10, 10)], "either")
    g.add("Gemm", [x, "square"], "embedding", transB=1)
    model = onnx.load_from_string(
        g.model({"image": ("f32", ["n", 3, 4, 4])}, {"embedding": ("f32", ["n", 10])})
    )
    name_nodes(model)
    return model


BATCHES = [np.random.default_rng(n).normal(size=(2, 3, 4, 4)).astype(np.float32) for n in range(3)]


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """For the library."""

    def __init__(self) -> None:
        self._batches = iter(BATCHES)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


@pytest.mark.parametrize("form", int8.FORMS)
def test_the_graph_is_the_librarys_to_the_byte(form: int8.Form, tmp_path: Path) -> None:
    model = of_every_kind()
    products = ("Conv", "Gemm", "MatMul")
    layers = {node.name: node.name for node in model.graph.node if node.op_type in products}
    nodes = [*layers, *(int8.passing(model, layers, ()) if form == "cpu" else [])]
    onnx.save(model, tmp_path / "float32.onnx")
    quantize_static(
        tmp_path / "float32.onnx",
        tmp_path / "int8.onnx",
        Batches(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*int8._PRODUCTS, *int8._PASSING],
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QUInt8 if form == "cpu" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options=dict(int8._OPTIONS[form]),
    )
    library = onnx.load(tmp_path / "int8.onnx")
    int8._strip(library)
    ours = to_int8(model, layers, (), [{"image": batch} for batch in BATCHES], form)
    kinds = {tensor.name: tensor.data_type for tensor in ours.graph.initializer}
    assert (kinds.get("wide.weight_quantized") == TensorProto.INT8) is (form == "cpu")
    assert ours.SerializeToString(deterministic=True) == library.SerializeToString(deterministic=True)


@settings(max_examples=60)
@given(
    arrays.arrays(
        np.float32,
        st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.data(),
)
def test_a_channels_extremes_are_all_that_its_scale_needs(values: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, values.ndim - 1))
    extremes = int8._extremes_along(values, axis)
    assert extremes.ndim == values.ndim and extremes.shape[axis] == values.shape[axis]
    scales = []
    for array in (values, extremes):
        channels = [array.take(number, axis).ravel() for number in range(array.shape[axis])]
        made = [compute_data_quant_params(channel, TensorProto.INT8, True) for channel in channels]
        scales.append(np.array([scale for _, scale in made], np.float32))
    np.testing.assert_array_equal(*scales)
    # And from the scale the weight, some values at a time.
    tensor = numpy_helper.from_array(values, "w")
    zeros = np.zeros(values.shape[axis], np.int8)
    with np.errstate(over="ignore"):
        expected = quantize_onnx_initializer(tensor, TensorProto.INT8, zeros, scales[0], axis)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cir_export.precision.held._CHUNK", data.draw(st.integers(1, 40)))
            becomes(tensor, int8_form(scales[0], values.shape, axis))
    assert tensor.data_type == TensorProto.INT8
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(expected))


def test_ranges_need_images() -> None:
    model = of_every_kind()
    with pytest.raises(ExportError, match="no images"):
        to_int8(model, {node.name: node.name for node in model.graph.node[:1]}, (), [], "cpu")


def overflowing(worst: float) -> ModelProto:
    """A convolution whose values leave float32 and are cut off after it."""
    g = GraphBuilder()
    g.constant("least", -1)
    g.constant("most", 1)
    x = g.add("Conv", ["image", g.constant("one.weight", [[[[worst]]], [[[1]]]])], "map")
    x = g.add("Clip", [x, "least", "most"], "cut")
    x = g.add("Conv", [x, g.constant("two.weight", np.ones((3, 2, 4, 4)))], "second")
    g.constant("shape", [-1, 3], np.int64)
    g.add("Reshape", [x, "shape"], "embedding")
    inputs, outputs = {"image": ("f32", ["n", 1, 4, 4])}, {"embedding": ("f32", ["n", 3])}
    model = onnx.load_from_string(g.model(inputs, outputs))
    name_nodes(model)
    return model


@pytest.mark.parametrize("form", int8.FORMS)
@pytest.mark.parametrize("worst", [3e38, np.nan])
def test_values_that_are_not_finite_are_told_with_their_layers(form: int8.Form, worst: float) -> None:
    model, images = overflowing(worst), [{"image": batch[:, :1] * 4} for batch in BATCHES]
    layers = {node.name: node.input[1].split(".")[0] for node in model.graph.node if node.op_type == "Conv"}
    expected = "one" if np.isfinite(worst) else "one two"
    with pytest.raises(ExportError, match=rf"NaN or infinite.*--keep-float32 {expected}\)"):
        to_int8(model, layers, (), images, form)
    if np.isfinite(worst):
        to_int8(model, layers, ("one",), images, form)


def test_what_a_branch_alone_reads_is_there_for_the_ranges() -> None:
    g = GraphBuilder()
    g.constant("choice", True, np.bool_)
    g.constant("more", np.full((1, 4), 3))
    outputs = [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["n", 4])]
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["doubled", "more"], ["chosen"])], name, [], outputs
        )
        for name, operator in (("then", "Add"), ("else", "Sub"))
    }
    g.add("Add", ["image", "image"], "doubled")
    g.add("If", ["choice"], "chosen", **branches)
    g.add("MatMul", ["chosen", g.constant("weight", np.eye(4))], "embedding")
    shapes = {"image": ("f32", ["n", 4])}, {"embedding": ("f32", ["n", 4])}
    model = onnx.load_from_string(g.model(*shapes))
    name_nodes(model)
    found = extremes(model, [model.graph.node[-1].name], [{"image": np.float32([[0, 1, 2, 3]])}], None)
    assert (found["chosen"].lowest, found["chosen"].highest) == (3, 9)


def runs(model: ModelProto, image: np.ndarray) -> np.ndarray:
    graph = OnnxBackend("cpu").load("image", Model(model.SerializeToString(), {}))
    return graph.run({"image": image})["embedding"]


def test_what_a_product_reads_is_rounded_for_it_alone() -> None:
    """A transformer that normalises behind its blocks hands on what its products read, in each of them."""
    g = GraphBuilder()
    g.add("Tanh", ["image"], "normed")
    g.add("MatMul", ["normed", g.constant("w", np.zeros((8, 8)))], "nothing")
    g.add("Add", ["normed", "nothing"], "handed_on")
    g.add("MatMul", ["handed_on", "w"], "nothing_again")
    g.add("Sub", ["handed_on", "nothing_again"], "embedding")
    shapes = {"image": ("f32", ["n", 8])}, {"embedding": ("f32", ["n", 8])}
    model = onnx.load_from_string(g.model(*shapes))
    name_nodes(model)
    image = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    layers = {node.name: node.name for node in model.graph.node if node.op_type == "MatMul"}
    for kept in ((), (next(iter(layers)),)):  # a weight that both read is int8 for the other
        lowered = to_int8(model, layers, kept, [{"image": image}], "cpu")
        assert sum(node.op_type == "QuantizeLinear" for node in lowered.graph.node) == 2 - len(kept)
        np.testing.assert_array_equal(runs(lowered, image), runs(model, image))


def test_products_that_int8_gives_wrongly_stay_float32() -> None:
    """ONNX Runtime fails at several matrices with scales of columns; the quantiser takes a factor for one."""
    g, random = GraphBuilder(), np.random.default_rng(0)
    g.constant("parts", [0, 3, 1, 4], np.int64)
    g.constant("joined", [0, 15], np.int64)
    g.add("Reshape", ["image", "parts"], "tokens")
    g.add("MatMul", ["tokens", g.constant("experts.weight", random.normal(size=(3, 4, 5)))], "each")
    x = g.add("Reshape", ["each", "joined"], "all")
    for name, factors in (("beta", {"beta": 3.0}), ("alpha", {"alpha": 0.25}), ("plain", {"beta": 1.0})):
        weights = [f"{name}.weight", f"{name}.bias"]
        g.constant(weights[0], random.normal(size=(15, 15)))
        g.constant(weights[1], 10 * random.normal(size=15))
        x = g.add("Gemm", [x, *weights], "embedding" if name == "plain" else name, **factors)
    model = onnx.load_from_string(g.model({"image": ("f32", ["n", 12])}, {"embedding": ("f32", ["n", 15])}))
    name_nodes(model)
    layers = quantisable(model, layers_of(model))
    assert list(layers.values()) == ["plain"]
    image = random.normal(size=(8, 12)).astype(np.float32)
    lowered = runs(to_int8(model, layers, (), [{"image": image}], "cpu"), image)
    assert cosines(runs(model, image), lowered).min() > 0.999
