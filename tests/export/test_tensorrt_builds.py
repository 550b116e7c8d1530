"""TensorRT itself builds plans of what the exporter writes: for `make tensorrt-check`, which finds one that
needs no GPU. Every system in a size that a test can afford, and the committed model, in all precisions."""

from __future__ import annotations

import os

import onnx
import pytest
from onnx import TensorProto, helper

from cir_infer.bundle import Bundle
from cir_infer.bundle.model import Model
from cir_infer.errors import BundleError, DeviceError
from cir_infer.runtime.tensorrt.profiles import Limits
from tests.export.plans import COMMITTED, SYSTEMS, Precision, bundle_of, graphs_of

if "CIR_TENSORRT_RTX" not in os.environ:
    pytest.skip("needs TensorRT for RTX; `make tensorrt-check` has it", allow_module_level=True)

LIMITS = Limits(batch=8, tokens=40)
WORKSPACE = 256 << 20


@pytest.fixture(scope="module", params=[COMMITTED, *SYSTEMS])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(request.param, tmp_path_factory.mktemp("bundle") / "model.cir")


def build(name: str, content: bytes, workspace: int = WORKSPACE, timings: bytes = b"") -> bytes:
    """As a device does on first use: in a process of its own."""
    from cir_infer.runtime.tensorrt.building import build_apart

    shares: list[float] = []
    built, seconds = build_apart(
        name, Model(content), LIMITS, workspace, timings, lambda share, _: shares.append(share)
    )
    assert seconds >= 0 and 0 < shares[-1] <= 1
    assert shares == sorted(shares), "progress goes back"
    return built.plan


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_every_precision(bundle: Bundle, precision: Precision) -> None:
    for name, content in graphs_of(bundle, precision).items():
        if precision == "int8":
            used = {node.op_type for node in onnx.load_from_string(content).graph.node}
            assert "DequantizeLinear" in used
        assert len(build(name, content)) > 1000


def model_of(operator: str) -> bytes:
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], "odd")], "g", shown[:1], shown[1:])
    return bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )


def test_a_graph_that_tensorrt_does_not_know_is_named() -> None:
    assert build("plain", model_of("Relu"))
    with pytest.raises(BundleError, match=r"cannot read the strange graph \(Nonsense 'odd': .*device='cuda'"):
        build("strange", model_of("Nonsense"))
    with pytest.raises(BundleError, match="cannot read the broken graph"):
        build("broken", model_of("Relu")[:-20])


def test_tensorrts_reason_is_in_the_message() -> None:
    model = onnx.load_from_string(model_of("Relu"))
    model.graph.node[0].op_type = "Mul"
    model.graph.node[0].input.append("signs")
    model.graph.node[0].input[0] = "float"
    model.graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["float"], to=TensorProto.FLOAT))
    model.graph.node.insert(1, helper.make_node("Add", ["x", "float"], ["sum"]))
    model.graph.node[2].input[:] = ["sum", "float"]
    model.graph.initializer.append(helper.make_tensor("bytes", TensorProto.INT8, [4], [1, -1, 1, -1]))
    with pytest.raises(DeviceError, match="Quantized constant"):
        build("signed", model.SerializeToString())
    with pytest.raises(DeviceError, match="workspace"):
        build("cramped", model_of("Softmax"), workspace=0)


def test_timings_of_elsewhere_are_left_aside() -> None:
    for timings in (b"", b"nonsense" * 50):
        assert build("plain", model_of("Relu"), timings=timings)


def test_a_plan_that_cannot_be_read_takes_nothing_down() -> None:
    from cir_infer.runtime.tensorrt.building import try_apart

    plan = build("plain", model_of("Relu"))
    for damaged in (plan[: len(plan) // 2], b"nonsense" * 50, plan):  # the last one needs a GPU
        with pytest.raises(DeviceError, match="plan of the plain graph"):
            try_apart("plain", damaged)
