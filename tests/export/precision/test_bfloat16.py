"""Bfloat16: stored as its nearest numbers, judged where it is computed, refused where it is not."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cir_export.commands.export import main
from cir_export.precision import Lowering, convert_bundle, samples_for
from cir_export.precision.bfloat16 import rounded_products, to_bfloat16
from cir_export.precision.held import nearest
from cir_export.precision.layers import name_nodes
from cir_infer import Engine, Gallery
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.limits import check_graph
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import BundleError, DeviceError, ExportError, GalleryError, UsageError
from cir_infer.extras import is_installed
from cir_infer.runtime import devices
from tests.bundles import DIM, GraphBuilder
from tests.export.precision.bundles import SIDE, convolutional, photographs


def computes_bfloat16() -> bool:
    if not is_installed("openvino"):
        return False
    from cir_infer.runtime.openvino.api import OpenVinoDevice

    return OpenVinoDevice().computes_bfloat16


computed = pytest.mark.skipif(
    not computes_bfloat16(), reason="needs openvino and a processor that computes bfloat16"
)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convolutional(tmp_path_factory.mktemp("exact") / "exact.cir")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos") / "photos", 24)


@pytest.fixture(scope="module")
def emulated(exact: Path, photos: Path) -> Path:
    """Converted on any machine, judged by an emulation."""
    target = exact.with_name("emulated.cir")
    samples = samples_for(Bundle(exact), photos, None)
    convert_bundle(exact, target, Lowering("bfloat16", emulate=True), samples)
    return target


# ---- the numbers


def test_weights_become_the_nearest_numbers_as_pytorch_rounds_them() -> None:
    random = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875, 3.4e38, 1e-45], np.float32)
    values = np.concatenate([random[~np.isnan(random)], special])
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(nearest(values), expected)
    nan = (nearest(np.array([np.nan], np.float32)).astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(nan).all()


def test_a_graph_is_read_with_the_numbers_that_it_stores(exact: Path) -> None:
    """Half the bytes for the weights of products; biases and what lies between stay float32."""
    model = onnx.load_from_string(Bundle(exact).graph("image").data)
    name_nodes(model)
    products = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    read = read_onnx_model(to_bfloat16(model, products).SerializeToString())
    assert read.stores_bfloat16 and not read_onnx_model(model.SerializeToString()).stores_bfloat16
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name.endswith(".weight"):
            stored = read.constants[f"{tensor.name}/bfloat16"]
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, torch.from_numpy(values.copy()).bfloat16().float().numpy())
        else:
            np.testing.assert_array_equal(read.constants[tensor.name], values)


def test_the_emulation_rounds_what_products_read_and_give() -> None:
    random = np.random.default_rng(1)
    weight, x = (random.normal(size=shape).astype(np.float32) for shape in ((6, 5), (3, 6)))
    g = GraphBuilder()
    g.constant("weight", weight)
    g.add("MatMul", ["x", "weight"], "product")
    g.constant("one", 1.0)
    g.add("Add", ["product", "one"], "y")
    model = onnx.load_from_string(g.model({"x": ("f32", ["n", 6])}, {"y": ("f32", ["n", 5])}))
    name_nodes(model)
    stored = to_bfloat16(model, {"MatMul_0"})
    session = onnxruntime.InferenceSession(
        rounded_products(stored, {"MatMul_0"}).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def rounded(values: np.ndarray) -> np.ndarray:
        return torch.from_numpy(values).bfloat16().float().numpy()

    expected = rounded(rounded(x) @ rounded(weight)) + 1
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-2)
    assert np.abs(session.run(None, {"x": x})[0] - (x @ weight + 1)).max() > 1e-4, "nothing was rounded"


def test_the_guards_follow_the_values_of_bfloat16() -> None:
    """A length that a graph makes of a bfloat16 constant is that number, not its bits."""
    length = TensorProto(name="length", data_type=TensorProto.BFLOAT16, dims=[1])
    length.raw_data = nearest(np.array([2.0**40], np.float32)).tobytes()
    nodes = [
        helper.make_node("Cast", ["length"], ["shape"], to=TensorProto.INT64),
        helper.make_node("Expand", ["x", "shape"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])],
        [length],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    with pytest.raises(BundleError, match=r"larger than any|too much memory"):
        check_graph(Model(model), {"x": (None,)})


# ---- the bundle


def test_a_bundle_says_what_it_is_and_on_what_it_was_judged(emulated: Path, exact: Path) -> None:
    manifest = Bundle(emulated).manifest
    assert (manifest.precision, manifest.version) == ("bfloat16", 2)
    assert manifest.fingerprint != Bundle(exact).manifest.fingerprint
    report = manifest.parity["precision"]
    assert report["judged_on"] == "ONNX Runtime, with its roundings"
    assert report["limits"] == {"cosine_worst": 0.999, "top10_agreement": 0.95}
    assert 0.999 < report["fidelity"]["cosine_worst"] < 1


def test_onnx_runtime_refuses_it_where_it_would_compute_in_float32(emulated: Path) -> None:
    for device in ("cpu", "cuda", "tensorrt", "ort-tensorrt"):
        with pytest.raises(DeviceError, match="only device='openvino' computes a bfloat16 bundle"):
            Engine(emulated, device=device)


@computed
def test_a_graph_that_it_spoils_is_not_a_processor_that_lacks_it(photos: Path, tmp_path: Path) -> None:
    """It was sent to another machine, where the same roundings wait."""
    g, random = GraphBuilder(), np.random.default_rng(0)
    common, own = random.normal(size=(2, 3, DIM))
    g.add("Cast", ["image"], "read", to=TensorProto.FLOAT)
    g.add("ReduceMean", ["read"], "pooled", axes=[1, 2], keepdims=0)
    g.add("MatMul", ["pooled", g.constant("m.both.weight", 1000 * common + own)], "both")
    g.add("MatMul", ["pooled", g.constant("m.common.weight", 1000 * common)], "common")
    g.add("Sub", ["both", "common"], "difference")
    g.l2("difference", "embedding")
    graph = g.model({"image": ("u8", ["n", SIDE, SIDE, 3])}, {"embedding": ("f32", ["n", DIM])})
    path = convolutional(tmp_path / "exact.cir")
    bundle = Bundle(path)
    members = {**bundle.contents(bundle.manifest.members), "image.onnx": graph}
    write_bundle(path, bundle.manifest, members)
    samples = samples_for(Bundle(path), photos, None)
    with pytest.raises(
        ExportError, match="do not run on the processor: OpenVINO's image graph gives"
    ) as told:
        convert_bundle(path, tmp_path / "new.cir", Lowering("bfloat16"), samples)
    assert "another machine" not in str(told.value) and "use device" not in str(told.value)
    assert [file.name for file in tmp_path.iterdir()] == ["exact.cir"]


def test_without_openvino_the_gate_says_what_to_do(
    exact: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    samples = samples_for(Bundle(exact), photos, None)
    with pytest.raises(
        DeviceError, match=r"bfloat16 cannot be judged here: .*cir-infer\[openvino\].*--emulate"
    ):
        convert_bundle(exact, tmp_path / "new.cir", Lowering("bfloat16"), samples)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "bfloat16", "--keep-float32", "first"],
        ["--precision", "bfloat16", "--tensorrt"],
        ["--precision", "float16", "--emulate"],
    ],
)
def test_flags_that_contradict_each_other(exact: Path, flags: list[str]) -> None:
    assert main([str(exact), *flags]) == 2


def test_layers_are_not_kept_where_openvino_decides(exact: Path, photos: Path, tmp_path: Path) -> None:
    samples = samples_for(Bundle(exact), photos, None)
    lowering = Lowering("bfloat16", keep_float32=["first"])
    with pytest.raises(UsageError, match="OpenVINO decides"):
        convert_bundle(exact, tmp_path / "new.cir", lowering, samples)


@computed
def test_it_is_judged_and_runs_where_it_is_computed(
    exact: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "bfloat16.cir"
    assert main([str(exact), "--precision", "bfloat16", "--images", str(photos), "-o", str(target)]) == 0
    assert "openvino" in Bundle(target).manifest.parity["precision"]["judged_on"]
    with caplog.at_level(logging.INFO, devices.__name__), Engine(target) as lowered, Engine(exact) as full:
        assert lowered.device == "openvino" and "alone computes in bfloat16" in caplog.text
        pictures = sorted(photos.iterdir())[:6]
        rows, expected = lowered.encode_images(pictures), full.encode_images(pictures)
        cosines = (rows * expected).sum(1)
        assert cosines.min() > 0.999
        assert np.abs(rows - expected).max() > 1e-5, "it was computed in float32"
        with (
            Gallery.create(tmp_path / "full.gallery", full),
            pytest.raises(GalleryError, match="Use the bundle that made them"),
        ):
            Gallery.open(tmp_path / "full.gallery", lowered)
