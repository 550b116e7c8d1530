"""Int8 for TensorRT has attention in float16; its roundings are judged, and an overflow there is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto

from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel
from cir_export.precision.attention import attention_of
from cir_export.precision.calibration import calibration_images, samples_for
from cir_export.precision.conversion import ConversionReport, Lowering, convert_bundle
from cir_export.precision.gate import PrecisionError
from cir_export.precision.graphs import LoweredGraph, lower_graphs
from cir_export.precision.layers import layers_of, name_nodes
from cir_export.preprocessing import plain_resize, word_text
from cir_export.samples import Samples, draw_samples
from cir_infer import Engine
from cir_infer.bundle import Bundle
from cir_infer.inputs.preprocess import preprocess
from tests.export.once import Once
from tests.export.precision.bundles import attentive, photographs
from tests.export.precision.test_graphs import images, run, types_of
from tests.export.systems.examples import CONFIGS, TOKENIZER, example

FOLLOWS = {"m.queries", "m.keys", "m.values"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(attentive(tmp_path_factory.mktemp("b") / "attentive.cir"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos") / "photos")


def lowered(bundle: Bundle, form: Any = "tensorrt", keep: tuple[str, ...] = ()) -> LoweredGraph:
    return lower_graphs(bundle, "int8", form, keep, images)[0]


def products_of_activations(model: ModelProto) -> list[NodeProto]:
    producer = {name: node.op_type for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul"
        and not any(name in constants or producer.get(name) == "DequantizeLinear" for name in node.input)
    ]


def test_attention_is_float16_between_int8_products(bundle: Bundle) -> None:
    model = lowered(bundle).model
    types, producer = types_of(model), {name: node for node in model.graph.node for name in node.output}
    half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    both = products_of_activations(model)
    assert len(both) == 2
    for node in both:
        assert half.issuperset([*node.input, *node.output])
    # One rounding on the way in and one on the way out: nothing between is cast but for the softmax.
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 1 + 3 + 2 + 1  # the picture, queries, keys and values, the softmax, the result
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    assert types[softmax.input[0]] == types[softmax.output[0]] == TensorProto.FLOAT
    layers = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node not in both]
    assert len(layers) == len(lowered(bundle).layers) == 6
    for node in layers:
        assert all(producer[name].op_type == "DequantizeLinear" for name in node.input[:2])
        assert half.isdisjoint([*node.input, *node.output])
    (added,) = (node for node in model.graph.node if node.output[0].startswith("residual"))
    assert half.isdisjoint([*added.input, *added.output]), "shortcuts stay float32"


def test_attention_stays_float32_where_it_is_not_for_tensorrt_or_a_layer_of_it_is_kept(
    bundle: Bundle,
) -> None:
    for graph in (lowered(bundle, "cpu"), *(lowered(bundle, keep=(layer,)) for layer in sorted(FOLLOWS))):
        assert TensorProto.FLOAT16 not in types_of(graph.model).values()
        assert graph.judged is graph.model
    after = lowered(bundle, keep=("m.out",))
    assert TensorProto.FLOAT16 in types_of(after.model).values()


def test_a_mask_beyond_float16_stays_float32(tmp_path: Path) -> None:
    model = lowered(Bundle(attentive(tmp_path / "masked.cir", mask=-1e9))).model
    (added,) = (node for node in model.graph.node if "m.places" in node.input)
    assert types_of(model)[added.output[0]] == TensorProto.FLOAT


def test_what_follows_other_layers_is_left_alone(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.graph("image").data)
    name_nodes(model)
    layers = layers_of(model)
    found = attention_of(model, layers, ())
    assert set(found.values()) == FOLLOWS and found.keys().isdisjoint(layers)
    assert not attention_of(model, layers, ["m.keys"])
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sigmoid"
    assert not attention_of(model, layers, ()), "products of activations alone are no attention"


def test_roundings_of_attention_are_judged(bundle: Bundle) -> None:
    graph = lowered(bundle)
    feeds = {"image": images()[0]}
    exact, judged, plain = (run(one, feeds) for one in (graph.original, graph.judged, graph.model))
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.judged.graph.initializer}
    np.testing.assert_allclose(judged, plain, atol=0.02)  # a kernel in float32 leaves roundings out
    assert (judged != plain).any() and 0 < 1 - (judged * exact).sum(1).min() < 1e-3
    for layer in graph.layers:
        alone = 1 - (run(graph.alone(layer), feeds) * exact).sum(1).min()
        assert 0 < alone < 1e-3
        assert (TensorProto.FLOAT16 in types_of(graph.alone(layer)).values()) == (layer in FOLLOWS)


def in_int8(
    source: Bundle, target: Path, photos: Path, form: Any = "tensorrt", keep: tuple[str, ...] = ()
) -> ConversionReport:
    low, calibration = Lowering("int8", form, keep), calibration_images(source, photos)
    return convert_bundle(source.path, target, low, samples_for(source, photos, None), calibration)


def test_scores_that_overflow_are_refused_and_their_layer_named(photos: Path, tmp_path: Path) -> None:
    source, target = Bundle(attentive(tmp_path / "hot.cir", scores=1e6)), tmp_path / "low.cir"

    with pytest.raises(PrecisionError, match=r"cosine.*m\.keys \(overflows\)") as caught:
        in_int8(source, target, photos)
    assert not target.exists()
    report = in_int8(source, target, photos, keep=("m.keys",))
    assert report.kept == ("m.keys",) and report.fidelity.cosine_worst > 0.99
    assert {error.layer for error in caught.value.layers if error.overflows} <= FOLLOWS
    # The form for a CPU has no float16 to overflow.
    report = in_int8(source, tmp_path / "cpu.cir", photos, form="cpu")
    assert report.manifest.parity["precision"]["judged_on"] == "ONNX Runtime"


def test_the_manifest_says_that_roundings_were_judged(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    report = in_int8(bundle, tmp_path / "low.cir", photos)
    said = report.manifest.parity["precision"]
    assert said["judged_on"] == "ONNX Runtime, with its roundings" and said["form"] == "tensorrt"
    held = onnx.load_from_string(Bundle(report.path).graph("image").data)
    assert TensorProto.FLOAT16 in types_of(held).values(), "what is written is no emulation"


def test_explanations_read_what_attention_gives_in_float16(
    photos: Path, tmp_path: Path, exported_once: Once
) -> None:
    """What they add stays float32, and reads the shares of a softmax and values that are now float16."""
    small = {**CONFIGS["clip4cir-sum"]["clip"], "vision_layers": (1,), "text_layers": 1}
    model = example("small", {"small": {**CONFIGS["clip4cir-sum"], "clip": small}})
    trained = TrainedModel(model, TOKENIZER, plain_resize(64), word_text(60))
    drawn = draw_samples(trained.image, trained.text, trained.tokenizer)
    with exported_once():
        export_bundle(trained, tmp_path / "vit.cir", Samples(drawn.images[:4], drawn.texts[:4], drawn.source))
    source = Bundle(tmp_path / "vit.cir")
    report = in_int8(source, tmp_path / "low.cir", photos)
    assert 0 < report.manifest.parity["precision"]["rows_as_sums"] < 2e-2
    types = types_of(onnx.load_from_string(Bundle(report.path).graph("image").data))
    assert TensorProto.FLOAT16 in types.values()
    with Engine(report.path, device="cpu") as engine:
        batch = np.stack([preprocess(image, source.manifest.image) for image in drawn.images[:4]])
        rows, parts, constant = engine.encode_in_parts(batch)
    total = parts.astype(float).sum((1, 2)) + constant
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(total, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=2e-2)
