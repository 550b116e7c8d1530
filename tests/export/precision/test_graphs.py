"""What lowered graphs hold: types, islands, Q/DQ pairs, and roundings that a CPU leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cir_export.precision import Lowering, convert_bundle, samples_for
from cir_export.precision.float16 import rounded, to_float16
from cir_export.precision.graphs import LoweredGraph, lower_graphs
from cir_export.precision.islands import float32_islands
from cir_export.precision.layers import layers_of, matching, name_nodes
from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import DeviceError, ExportError, UsageError
from tests.bundles import HIDDEN, GraphBuilder, manifest_of, members_of
from tests.export.precision.bundles import SIDE, convolutional

STATISTICS = {"Clip", "Mul", "ReduceMean", "Pow", "ReduceL2", "ReduceSum", "Max", "Div", "Sub"}


def images() -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8) for n in range(3)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(convolutional(tmp_path_factory.mktemp("b") / "small.cir"))


def lowered(bundle: Bundle, precision: str, form: str = "cpu", keep: tuple[str, ...] = ()) -> LoweredGraph:
    return lower_graphs(bundle, precision, form, keep, images)[0]  # type: ignore[arg-type]


def types_of(model: ModelProto) -> dict[str, int]:
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = typed.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(model: ModelProto, feeds: dict[str, np.ndarray], optimise: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs: list[np.ndarray] = ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    return outputs[0]


def test_layers_have_the_names_of_their_weights(bundle: Bundle) -> None:
    graph = lowered(bundle, "float16")
    assert graph.layers == ("m.first", "m.second", "m.third", "m.project")
    assert matching(graph.layers, ["m.s*"]) == {"m.second"}
    assert matching(graph.layers, ["m"]) == set(graph.layers)
    with pytest.raises(UsageError, match=r"'m\.fourth'.*m\.first"):
        matching(graph.layers, ["m.first", "m.fourth"])


def test_float16_keeps_inputs_outputs_and_statistics(bundle: Bundle) -> None:
    model = lowered(bundle, "float16").model
    types = types_of(model)
    assert types["image"] == TensorProto.UINT8 and types["embedding"] == TensorProto.FLOAT
    assert model.opset_import[0].version == 17 and len(model.opset_import) == 1
    for node in model.graph.node:
        kinds = {types[name] for name in (*node.input, *node.output) if name}
        if node.op_type in STATISTICS:
            assert kinds == {TensorProto.FLOAT}, node
        if node.op_type in ("Conv", "Gemm", "Relu", "Add"):
            assert kinds == {TensorProto.FLOAT16}, node
    # One way in, one to GeM, one from it, one to the norm: no cast inside an island.
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 1 + 4


def test_a_kept_layer_takes_what_follows_it_along(bundle: Bundle) -> None:
    graph = lowered(bundle, "float16", keep=("m.second",))
    types = types_of(graph.model)
    assert graph.kept == {"m.second"}
    assert types["m.second.weight"] == TensorProto.FLOAT and types["m.first.weight"] == TensorProto.FLOAT16
    conv = next(node for node in graph.model.graph.node if "m.second.weight" in node.input)
    relu = next(node for node in graph.model.graph.node if conv.output[0] in node.input)
    assert relu.op_type == "Relu" and types[relu.output[0]] == TensorProto.FLOAT


def products(values: np.ndarray, weight: np.ndarray) -> ModelProto:
    """x . w, then relu."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
        helper.make_node("MatMul", ["z", "v"], ["out"], name="back"),
    ]
    size = weight.shape[1]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [len(values), size])],
        [
            numpy_helper.from_array(weight.astype(np.float32), "w"),
            numpy_helper.from_array(np.eye(size, dtype=np.float32) / 1024, "v"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_overflow_that_the_cpu_hides_is_seen() -> None:
    values = np.full((1, 2), 300, np.float32)
    half = to_float16(products(values, np.full((2, 2), 200.0)), ())
    assert np.isfinite(run(half, {"x": values})).all()  # ONNX Runtime computes in float32 here
    assert not np.isfinite(run(rounded(half), {"x": values})).all()


def test_roundings_are_those_of_float16() -> None:
    values = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(8, 8))
    half = rounded(to_float16(products(values, weight), ()))

    def as_half(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32)

    y = as_half(as_half(values) @ as_half(weight.astype(np.float32)))
    expected = as_half(np.maximum(y, 0) @ (np.eye(8, dtype=np.float32) / 1024))
    # Sums may be ordered otherwise, which can tip a rounding: one unit in the last place.
    np.testing.assert_allclose(run(half, {"x": values}), expected, rtol=2**-10, atol=1e-7)


def test_a_weight_beyond_float16_is_an_error_that_names_it() -> None:
    model = products(np.ones((1, 2), np.float32), np.array([[1e5, 0], [0, 1]]))
    with pytest.raises(ExportError, match=r"weight w holds 1e\+05.*--keep-float32"):
        to_float16(model, ())
    assert np.isfinite(run(to_float16(model, {"product", "relu"}), {"x": np.ones((1, 2), np.float32)})).all()


def test_constants_that_float16_does_not_have_stay_float32() -> None:
    model = products(np.ones((1, 2), np.float32), np.eye(2))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e9), "far"))
    model.graph.node[1].CopyFrom(helper.make_node("Mul", ["y", "far"], ["z"], name="masked"))
    name_nodes(model)
    assert "masked" in float32_islands(model) and "product" not in float32_islands(model)
    assert layers_of(model) == {"product": "product", "back": "back"}


@pytest.mark.parametrize("operator", ["Celu", "IsInf"])
def test_what_has_no_float16_form_stays_float32(operator: str) -> None:
    """nn.CELU: the converter wrote what no runtime reads, and the model had no float16 bundle."""
    values = np.array([[-2.0, 0.5]], np.float32)
    model = products(values, np.eye(2))
    between = [helper.make_node(operator, ["y"], ["z"], name="between")]
    if operator == "IsInf":
        between = [
            helper.make_node(operator, ["y"], ["found"], name="between"),
            helper.make_node("Where", ["found", "y", "y"], ["z"], name="where"),
        ]
    nodes = [model.graph.node[0], *between, model.graph.node[2]]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    half = to_float16(model, float32_islands(model))
    assert types_of(half)["w"] == TensorProto.FLOAT16
    np.testing.assert_allclose(run(half, {"x": values}), run(model, {"x": values}), rtol=1e-3)


@pytest.mark.parametrize("operator", ["ScatterElements", "ScatterND"])
def test_sums_of_what_is_scattered_run_in_a_float16_graph(operator: str) -> None:
    """A bag of words: the float16 bundle passed its gate, which sees roundings, and failed at every text."""
    values = np.array([[-2.0, 0.5]], np.float32)
    model = products(values, np.eye(2))
    where = np.zeros((1, 2) if operator == "ScatterElements" else (1, 1), np.int64)
    model.graph.initializer.append(numpy_helper.from_array(where, "where"))
    sums = helper.make_node(operator, ["x", "where", "x"], ["sums"], name="sums", reduction="add")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (sums, *model.graph.node)]
    nodes[1].input[0] = "sums"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    half = to_float16(model, float32_islands(model))
    assert types_of(half)["w"] == TensorProto.FLOAT16
    np.testing.assert_allclose(run(half, {"x": values}), run(model, {"x": values}), rtol=1e-3)


def test_a_bundle_that_cannot_run_is_not_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is judged of float16 are its roundings in float32, which run whatever it does."""

    def failing(engine: Engine) -> None:
        raise DeviceError("ONNX Runtime failed in the text graph")

    monkeypatch.setattr(Engine, "warm_up", failing)
    samples = samples_for(bundle, None, None)
    with pytest.raises(ExportError, match=r"do not run on the processor: ONNX Runtime failed.*--keep-"):
        convert_bundle(bundle.path, tmp_path / "low.cir", Lowering("float16"), samples)
    assert not (tmp_path / "low.cir").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
def test_encoders_without_layers_are_told_as_such(precision: str, tmp_path: Path) -> None:
    """They were told that --keep-float32 named every layer, which nobody had said."""
    g = GraphBuilder()
    g.add("Cast", ["image"], "read", to=TensorProto.FLOAT)
    g.l2(g.add("ReduceMean", ["read"], "mean", axes=[1, 3], keepdims=0), "embedding")
    image = g.model({"image": ("u8", ["n", 8, 8, 3])}, {"embedding": ("f32", ["n", 8])})
    manifest = manifest_of("image-only")
    write_bundle(tmp_path / "b.cir", manifest, {**members_of("image-only"), "image.onnx": image})
    with pytest.raises(UsageError, match=f"becomes {precision}: they have no layers"):
        lowered(Bundle(tmp_path / "b.cir"), precision)


def test_int8_for_the_cpu_runs_whole_in_int8(bundle: Bundle, tmp_path: Path) -> None:
    graph = lowered(bundle, "int8")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(graph.model.SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3 and "Conv" not in kinds and "FusedConv" not in kinds
    assert kinds.count("QuantizeLinear") <= 2  # into the first convolution, into the projection


def test_int8_for_tensorrt_is_symmetric_and_signed(bundle: Bundle) -> None:
    model = lowered(bundle, "int8", "tensorrt").model
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any()
    # Weights go through a pair of their own, biases stay float32, and a ReLU is fused into its convolution.
    kinds = {
        tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith(("weight", "bias"))
    }
    assert kinds == {TensorProto.FLOAT}
    readers = {name: node.op_type for node in model.graph.node for name in node.input}
    assert {readers[node.output[0]] for node in model.graph.node if node.op_type == "Conv"} == {"Relu"}
    assert model.opset_import[0].version == 17 and len(model.opset_import) == 1


@pytest.mark.parametrize("form", ["cpu", "tensorrt"])
def test_int8_with_every_layer_alone_is_float32_elsewhere(bundle: Bundle, form: str) -> None:
    graph = lowered(bundle, "int8", form)
    feeds = {"image": images()[0]}
    exact = run(graph.original, feeds)
    whole = 1 - (run(graph.model, feeds) * exact).sum(1).min()
    for layer in graph.layers:
        alone = 1 - (run(graph.alone(layer), feeds) * exact).sum(1).min()
        assert 0 < alone < 4 * whole
    kept = lowered(bundle, "int8", form, keep=("m.first",))
    assert kept.kept == {"m.first"}
    held = {tensor.name: tensor.data_type for tensor in kept.model.graph.initializer}
    assert held["m.first.weight"] == TensorProto.FLOAT


def test_every_layer_kept_is_a_contradiction(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="every layer"):
        lowered(bundle, "int8", keep=("*",))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_equal_bundles_give_equal_bytes(bundle: Bundle, precision: str) -> None:
    first, second = (lowered(bundle, precision).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_what_hands_its_inputs_on_is_not_lowered(tmp_path: Path, precision: str) -> None:
    """As the text graph of a query in one piece, whose token ids were rounded."""
    g = GraphBuilder()
    g.add("Cast", ["tokens"], "floats", to=TensorProto.FLOAT)
    g.add("ReduceMax", ["floats"], "largest", axes=[1], keepdims=1)
    g.constant("often", [1, HIDDEN], np.int64)
    g.add("Tile", ["largest", "often"], "text")
    text = g.model(
        {"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}, {"text": ("f32", ["n", HIDDEN])}
    )
    write_bundle(tmp_path / "b.cir", manifest_of("cosine"), {**members_of("cosine"), "text.onnx": text})
    found = lower_graphs(Bundle(tmp_path / "b.cir"), precision, "cpu", (), images)  # type: ignore[arg-type]
    assert [graph.name for graph in found] == ["image"]
