"""Plans: when they are built and when found, damaged and foreign ones, and how they are built."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine
from cir_infer.bundle.model import Model
from cir_infer.errors import BundleError, DeviceError, UsageError
from cir_infer.runtime.tensorrt.plan_file import PlanFile, read_plan
from cir_infer.runtime.tensorrt.profiles import Limits, profiles_for
from tests.bundles import GraphBuilder, artemis_graph, text_graph
from tests.processes.forking import exit_code_of_fork, refused_in_child
from tests.runtime.tensorrt.conftest import VERSIONS
from tests.runtime.tensorrt.gpu import CapturingDevice


@pytest.fixture
def gpu(gpu_that_builds: CapturingDevice) -> CapturingDevice:
    return gpu_that_builds


def builds(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.message.startswith("building the plan") for record in caplog.records)


def test_profiles_span_batches_and_lengths() -> None:
    single, batch = profiles_for({"tokens": (-1, -1), "lengths": (-1,)}, Limits(16, 77))
    assert single["tokens"] == ((1, 1), (1, 12), (1, 77)) and single["lengths"] == ((1,), (1,), (1,))
    assert batch["tokens"] == ((1, 1), (16, 12), (16, 77)) and batch["lengths"] == ((1,), (16,), (16,))
    single, batch = profiles_for({"image": (-1, 224, 224, 3)}, Limits(8))
    assert single["image"].most == (1, 224, 224, 3) and batch["image"].most == (8, 224, 224, 3)
    with pytest.raises(DeviceError, match="axis 2 of the input 'image'"):
        profiles_for({"image": (-1, 3, -1)}, Limits())


# ---- building


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_plans_are_built_once_and_found_again(
    gpu: CapturingDevice, tensorrt: Path, bundle: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    Engine(bundle, device="tensorrt")
    assert builds(caplog) == 3
    before = {path: path.read_bytes() for path in tensorrt.glob("*.plan")}
    assert len(before) == 3
    caplog.clear()
    engine = Engine(bundle, device="tensorrt")
    assert builds(caplog) == 0
    assert {path: path.read_bytes() for path in tensorrt.glob("*.plan")} == before
    facts = engine.describe()["backend"]["plans"]["image"]
    assert facts["parity"]["worst_cosine"] > 0.9999 and facts["workspace"] == 4 << 30
    found = read_plan(Path(facts["file"]))
    assert isinstance(found, PlanFile)
    assert found.key["tensorrt"] == version and found.key["limits"] == {"batch": 32, "tokens": 64}
    header = json.loads(found.plan.partition(b"\n")[0])
    assert "TF32" not in header["flags"] and header["workspace"] == 4 << 30
    assert [profile["image"][2] for profile in header["profiles"]] == [[1, 8, 8, 3], [32, 8, 8, 3]]
    assert header["previews"] == (["PROFILE_SHARING_0806"] if version == "8.6.0" else [])
    timings = list(tensorrt.glob("timings-*.cache"))
    assert len(timings) == 1 and read_plan(timings[0]) == PlanFile({}, {}, b"timed")


def test_a_damaged_plan_is_built_again(
    gpu: CapturingDevice, tensorrt: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Engine(bundle, device="tensorrt")
    path = next(tensorrt.glob("image-*.plan"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    caplog.clear()
    Engine(bundle, device="tensorrt")
    assert builds(caplog) == 1 and "damaged or was cut short" in caplog.text
    assert isinstance(read_plan(path), PlanFile)


def test_a_plan_of_another_gpu_is_named_in_the_reason(
    gpu: CapturingDevice, tensorrt: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Engine(bundle, device="tensorrt")
    caplog.clear()
    gpu.architecture = 87
    Engine(bundle, device="tensorrt")
    assert builds(caplog) == 3
    assert "the newest one has compute_capability '7.5' instead of '8.7'" in caplog.text


@pytest.mark.parametrize("fault", ["crash while reading", "refuse plans"])
def test_a_plan_that_cannot_be_read_never_takes_the_process_down(
    fault: str,
    gpu: CapturingDevice,
    tensorrt: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from cir_infer.runtime.tensorrt import backend

    Engine(bundle, device="tensorrt")
    # The driver was changed since, and TensorRT dies of the plans that it reads.
    monkeypatch.setattr(backend, "driver_version", lambda: "13000")
    monkeypatch.setenv("CIR_FAKE_TENSORRT_FAULT", fault)
    caplog.clear()
    with pytest.raises(DeviceError, match=r"cannot be used|refuses"):
        Engine(bundle, device="tensorrt", missing_plan="refuse")
    expected = "TensorRT crashed (signal 11)" if fault == "crash while reading" else "Version tag"
    assert expected in caplog.text
    engine = Engine(bundle, device="tensorrt", missing_plan="onnxruntime")
    assert engine.device == "cpu" and "taking ONNX Runtime, as was asked for" in caplog.text
    monkeypatch.delenv("CIR_FAKE_TENSORRT_FAULT")
    caplog.clear()
    assert Engine(bundle, device="tensorrt").device == "tensorrt"
    assert builds(caplog) == 0, "the plans were fine after all"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("crash while building", r"TensorRT crashed \(signal 11\); use device='cuda'"),
        ("killed while building", "memory ran out; close other programs, add swap, or set CIR_PLAN_BATCH"),
        ("out of memory", r"4096 MiB of workspace: Error Code 2: OutOfMemory.*free GPU memory"),
    ],
)
def test_a_build_that_fails_says_why(
    fault: str, said: str, gpu: CapturingDevice, tensorrt: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIR_FAKE_TENSORRT_FAULT", fault)
    with pytest.raises(DeviceError, match=said):
        Engine(bundle, device="tensorrt")
    assert list(tensorrt.glob("*.plan")) == []


def test_a_plan_that_answers_otherwise_is_refused_and_not_built_again(
    gpu: CapturingDevice,
    tensorrt: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CIR_FAKE_TENSORRT_FAULT", "wrong plans")
    said = r"gives another 'numerators' than ONNX Runtime on the CPU.*delete it to try again"
    for attempt in range(2):
        with pytest.raises(DeviceError, match=said):
            Engine(bundle, device="tensorrt")
        assert builds(caplog) == 1, attempt
    monkeypatch.delenv("CIR_FAKE_TENSORRT_FAULT")
    next(tensorrt.glob("compose-*.plan")).unlink()
    assert Engine(bundle, device="tensorrt").device == "tensorrt"


@pytest.mark.parametrize(
    ("fault", "said"),
    [("one value", r"differ by 0\.005 of a row's largest value"), ("wrong lengths", "by 0.01 of")],
)
def test_a_plan_is_held_by_its_values_and_not_by_an_angle(
    gpu: CapturingDevice, tensorrt: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setenv("CIR_FAKE_TENSORRT_FAULT", fault)
    with pytest.raises(
        DeviceError, match=rf"than ONNX Runtime on the CPU: .*{said}.*cosine (1\.0000|0\.9999)"
    ):
        Engine(bundle, device="tensorrt")


def test_a_text_encoder_that_is_wrong_in_tensorrt_stays_on_the_cpu(
    gpu: CapturingDevice,
    bundle: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CIR_FAKE_TENSORRT_FAULT", "wrong text plans")
    ours = Engine(bundle, device="tensorrt")
    placement = ours.describe()["backend"]["plans"]["text"]["placement"]
    assert placement["chosen"] == "cpu" and "gives another 'text'" in placement["refused"]["tensorrt"]
    monkeypatch.delenv("CIR_FAKE_TENSORRT_FAULT")
    caplog.clear()
    again = Engine(bundle, device="tensorrt")  # the decision is in the plan's manifest
    assert builds(caplog) == 0
    np.testing.assert_array_equal(again.encode_texts(["is red"]), ours.encode_texts(["is red"]))
    np.testing.assert_allclose(ours.encode_texts(["is red"]), engine.encode_texts(["is red"]), atol=1e-6)


def test_the_faster_place_is_chosen_and_recorded(
    gpu: CapturingDevice, tensorrt: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cir_infer.runtime.onnx import OnnxGraph
    from cir_infer.runtime.tensorrt import plan_graph

    run = OnnxGraph.run

    def slow(self: OnnxGraph, feeds: Any) -> Any:
        import time

        time.sleep(0.005)
        return run(self, feeds)

    monkeypatch.setattr(OnnxGraph, "run", slow)
    engine = Engine(bundle, device="tensorrt")
    assert isinstance(engine._graphs["text"], plan_graph.PlanGraph)
    placement = engine.describe()["backend"]["plans"]["text"]["placement"]
    assert placement["chosen"] == "tensorrt" and placement["cpu_ms"] > 5 > placement["tensorrt_ms"]


def test_a_broken_timing_cache_costs_time_only(gpu: CapturingDevice, tensorrt: Path, bundle: Path) -> None:
    Engine(bundle, device="tensorrt")
    timings = next(tensorrt.glob("timings-*.cache"))
    for content in (b"damaged", PlanFile({}, {}, b"of another version").to_bytes()):
        timings.write_bytes(content)
        for plan in tensorrt.glob("*.plan"):
            plan.unlink()
        Engine(bundle, device="tensorrt")
        assert read_plan(timings) == PlanFile({}, {}, b"timed")


def test_a_graph_that_is_no_onnx_model(gpu: CapturingDevice) -> None:
    from cir_infer.runtime.tensorrt.building import build_apart

    with pytest.raises(BundleError, match=r"TensorRT 10\.3\.0 cannot read the image graph \(ModelImporter"):
        build_apart("image", Model(b"no model"), Limits(), 1 << 28, b"", lambda *_: None)


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_the_node_that_tensorrt_stumbles_on_is_named_where_it_says_so(
    gpu: CapturingDevice, version: str
) -> None:
    from cir_infer.runtime.tensorrt.building import build_apart

    g = GraphBuilder()
    g.add("Transpose", ["image"], "planes", perm=[0, 2, 1], name="turn")
    g.add("Cast", ["planes"], "embedding", to=1)
    model = g.model({"image": ("u8", ["n", 4, 4])}, {"embedding": ("f32", ["n", 4, 4])})
    named = "" if version.startswith("8.") else "Transpose 'turn': "
    with pytest.raises(
        BundleError, match=rf"cannot read the image graph \({named}first input has type UInt8"
    ):
        build_apart("image", Model(model), Limits(), 1 << 28, b"", lambda *_: None)


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_progress_rises_to_the_end(gpu: CapturingDevice, version: str) -> None:
    from cir_infer.runtime.tensorrt.building import build_apart

    seen: list[float] = []
    built, seconds = build_apart(
        "compose", Model(artemis_graph()), Limits(), 1 << 28, b"", lambda share, _: seen.append(share)
    )
    assert built.plan and seconds >= 0
    if version == "8.6.0":
        assert seen == []
    else:
        assert seen == sorted(seen) and seen[-1] == 1.0 and len(set(seen)) > 4


def test_progress_is_shown_with_the_time_left(caplog: pytest.LogCaptureFixture, tensorrt: Path) -> None:
    from cir_infer.runtime.tensorrt.building import build_progress

    caplog.set_level(logging.INFO, "cir_infer")
    with build_progress("building image") as report:
        for share in np.linspace(0.02, 1, 50):
            report(float(share), "Tactics")
    assert 8 <= len(caplog.records) <= 11
    assert "about 0 s left (Tactics)" in caplog.text


@pytest.mark.parametrize(
    ("free", "integrated", "expected"),
    [
        (16 << 30, False, 4 << 30),
        (2 << 30, False, 1 << 30),
        (4 << 30, True, 1 << 30),
        (1 << 20, True, 64 << 20),
    ],
)
def test_the_workspace_is_bound_by_free_memory(
    free: int, integrated: bool, expected: int, tensorrt: Path
) -> None:
    from cir_infer.runtime.tensorrt.building import workspace_for

    assert workspace_for(free, integrated) == expected


def half_model() -> bytes:
    """A graph with a float16 part and a float32 island, as the converter writes them."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["reference"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "two"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["wide"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("reference", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.full(1, 2, np.float16), "two")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_float16_is_the_graphs_and_needs_flags_on_8_6_only(
    gpu: CapturingDevice, version: str, tmp_path: Path
) -> None:
    from cir_infer.runtime.tensorrt.api import build_plan

    path = tmp_path / "graph.onnx"
    path.write_bytes(half_model())
    built = build_plan("image", path, Limits(), 1 << 28, b"", lambda *_: None)
    flags = json.loads(built.plan.partition(b"\n")[0])["flags"]
    assert flags == (["FP16", "OBEY_PRECISION_CONSTRAINTS"] if version == "8.6.0" else [])


@pytest.mark.parametrize("version", ["8.6.0"], indirect=True)
def test_what_a_quantised_graph_keeps_in_float16_is_not_widened(
    gpu: CapturingDevice, version: str, tmp_path: Path
) -> None:
    import onnx
    from onnx import helper, numpy_helper

    from cir_infer.runtime.tensorrt.api import build_plan

    model = onnx.load_from_string(half_model())
    model.graph.node[0].input[0] = "dequantised"
    for number, kind in enumerate(("QuantizeLinear", "DequantizeLinear")):
        tensors = (["reference", "quantised"], ["quantised", "dequantised"])[number]
        model.graph.node.insert(number, helper.make_node(kind, [tensors[0], "scale", "zero"], tensors[1:]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    built = build_plan("image", path, Limits(), 1 << 28, b"", lambda *_: None)
    assert set(json.loads(built.plan.partition(b"\n")[0])["flags"]) == {
        "FP16",
        "INT8",
        "OBEY_PRECISION_CONSTRAINTS",
    }


# ---- running one graph


def test_a_graph_takes_what_it_was_built_for_and_nothing_else(gpu: CapturingDevice, tensorrt: Path) -> None:
    from cir_infer.runtime.tensorrt.building import build_apart
    from cir_infer.runtime.tensorrt.plan_graph import PlanGraph

    built, _ = build_apart("text", Model(text_graph()), Limits(4, 16), 1 << 28, b"", lambda *_: None)
    graph = PlanGraph("text", built.plan, gpu)
    tokens, lengths = np.ones((9, 16), np.int32), np.full(9, 16, np.int32)
    whole = graph.run({"tokens": tokens, "lengths": lengths})["text"]
    assert whole.shape == (9, 6), "more than a batch runs in parts"
    single = graph.run({"tokens": tokens[:1], "lengths": lengths[:1]})["text"]
    np.testing.assert_allclose(whole[:1], single, atol=1e-6)
    for feeds in (
        {"tokens": tokens},
        {"tokens": tokens.astype(np.int64), "lengths": lengths},
        {"tokens": tokens, "lengths": lengths[:3]},
        {"tokens": tokens[0], "lengths": lengths},
    ):
        with pytest.raises(DeviceError, match="the plan of the text graph takes"):
            graph.run(feeds)
    with pytest.raises(DeviceError, match=r"'tokens' of \(1, 17\).*outside"):
        graph.run({"tokens": np.ones((1, 17), np.int32), "lengths": np.ones(1, np.int32)})
    with graph._lock:  # as another thread may have it at a fork
        feeds = {"tokens": tokens, "lengths": lengths}
        assert exit_code_of_fork(lambda: refused_in_child(lambda: graph.run(feeds))) == 0
    assert graph.run({"tokens": tokens[:2], "lengths": lengths[:2]})["text"].shape == (2, 6)


def test_the_batch_limit_is_the_users(
    gpu: CapturingDevice, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIR_PLAN_BATCH", "5")
    assert Engine(bundle, device="tensorrt").describe()["backend"]["limits"]["batch"] == 5
    monkeypatch.setenv("CIR_PLAN_BATCH", "many")
    with pytest.raises(UsageError, match="CIR_PLAN_BATCH is 'many'"):
        Engine(bundle, device="tensorrt")
