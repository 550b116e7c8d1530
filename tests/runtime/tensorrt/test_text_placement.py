"""Where the text encoder runs: on the CPU, in TensorRT, or in the recurrent kernel, by measurement."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine
from cir_infer.bundle import write_bundle
from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError
from cir_infer.runtime.onnx import OnnxGraph
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from tests.bundles import GraphBuilder, manifest_of, members_of
from tests.runtime.recurrent.graphs import recurrent_graph
from tests.runtime.tensorrt.conftest import check_encoder_here
from tests.runtime.tensorrt.gpu import CapturingDevice
from tests.runtime.tensorrt.test_plans import builds

TEXTS = ["is red", "a longer blue square and more green", "shorter"]


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose text graph is a BiGRU."""
    path = tmp_path_factory.mktemp("recurrent") / "bigru.cir"
    members = {**members_of("artemis"), "text.onnx": recurrent_graph("GRU", 2, hidden=3, width=5, words=15)}
    write_bundle(path, manifest_of("artemis"), members)
    return path


@pytest.fixture
def slow_elsewhere(gpu: CapturingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of whoever compares the places the kernel takes no time and the others some."""
    from cir_infer.runtime.recurrent import opening
    from cir_infer.runtime.tensorrt import placement
    from cir_infer.runtime.tensorrt.plan_graph import PlanGraph

    passed = 0.0
    monkeypatch.setattr(placement, "time", SimpleNamespace(perf_counter=lambda: passed))
    monkeypatch.setattr(placement, "_TIMED_RUNS", 2)
    monkeypatch.setattr(placement, "_TIMED_LENGTHS", (2,))
    monkeypatch.setattr(opening, "_EVERY", 6)
    for kind in (OnnxGraph, PlanGraph):
        run = kind.run

        def slow(self: Any, feeds: Any, run: Any = run) -> Any:
            nonlocal passed
            passed += 0.2 if "tokens" in feeds and feeds["tokens"].shape == (1, 2) else 0.0
            return run(self, feeds)

        monkeypatch.setattr(kind, "run", slow)


def placement(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.describe()["backend"]["plans"]["text"]
    return found


def test_the_kernel_is_chosen_where_it_is_fastest(
    slow_elsewhere: None,
    gpu: CapturingDevice,
    recurrent: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from cir_export.plans import shown_plans
    from cir_infer.runtime.tensorrt import backend

    expected = Engine(recurrent, device="cpu").encode_texts(TEXTS)
    engine = Engine(recurrent, device="tensorrt")
    facts = placement(engine)
    assert facts["placement"]["chosen"] == "kernel" and facts["placement"]["refused"] == {}
    assert {"cpu_ms", "tensorrt_ms", "kernel_ms"} <= set(facts["placement"])
    assert facts["kernel"]["worst_cosine"] > 0.99999 and facts["kernel"]["longest"] == 64
    assert isinstance(engine._graphs["text"], RecurrentEncoder)
    np.testing.assert_allclose(engine.encode_texts(TEXTS), expected, atol=1e-6)
    shown = shown_plans(engine.describe()["backend"])
    assert re.search(
        r"runs on kernel \(cpu \d+\.\d\d ms, tensorrt \d+\.\d\d ms, kernel \d+\.\d\d ms\)", shown
    )

    # The decision is in the plan's manifest; the kernel is tried again only after a change of driver.
    checks: list[int] = []

    def counted(*asked: Any) -> dict[str, Any]:
        checks.append(1)
        return check_encoder_here(gpu, *asked)

    monkeypatch.setattr(backend, "check_encoder_apart", counted)
    caplog.clear()
    again = Engine(recurrent, device="tensorrt", missing_plan="refuse")
    assert isinstance(again._graphs["text"], RecurrentEncoder) and not checks
    np.testing.assert_array_equal(again.encode_texts(TEXTS), engine.encode_texts(TEXTS))
    monkeypatch.setattr(backend, "driver_version", lambda: "13000")
    monkeypatch.setattr(backend, "try_apart", lambda *_: None)
    for _ in range(2):
        Engine(recurrent, device="tensorrt", missing_plan="refuse")
        assert checks == [1]
    assert builds(caplog) == 0


@pytest.mark.parametrize("fault", ["another version", "not compiled", "wrong after an update of the driver"])
def test_a_kernel_that_is_not_what_was_measured_is_measured_again(
    fault: str,
    slow_elsewhere: None,
    gpu: CapturingDevice,
    recurrent: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from cir_infer.runtime.tensorrt import backend
    from tests.emulation.emulated import EmulatedCooperation

    Engine(recurrent, device="tensorrt")
    said = refuse(fault, gpu, monkeypatch)
    if fault == "wrong after an update of the driver":
        monkeypatch.setattr(backend, "driver_version", lambda: "13000")
        monkeypatch.setattr(backend, "try_apart", lambda *_: None)
    caplog.clear()
    with pytest.raises(DeviceError, match="what was built cannot be used any more"):
        Engine(recurrent, device="tensorrt", missing_plan="refuse")
    assert said in caplog.text
    facts = placement(Engine(recurrent, device="tensorrt"))
    assert builds(caplog) == 1
    if fault == "another version":
        assert facts["kernel"]["version"] == EmulatedCooperation.version == "newer"
    else:
        assert facts["placement"]["chosen"] != "kernel" and said in facts["placement"]["refused"]["kernel"]


def refuse(fault: str, gpu: CapturingDevice, monkeypatch: pytest.MonkeyPatch) -> str:
    """Arrange for a fault; gives what is said of it."""
    from tests.emulation.emulated import EmulatedCooperation

    if fault == "another version":
        monkeypatch.setattr(EmulatedCooperation, "version", "newer")
        return "is another than the one that was measured"
    if fault == "not compiled":

        def missing(kernel: str) -> None:
            raise DeviceError("the CUDA kernels were not compiled")

        monkeypatch.setattr(gpu, "cooperative", missing)
        return "the CUDA kernels were not compiled"
    encode = RecurrentEncoder.run
    monkeypatch.setattr(
        RecurrentEncoder, "run", lambda self, feeds: {"text": encode(self, feeds)["text"][:, ::-1]}
    )
    return "gives another text embedding than ONNX Runtime on the CPU: at "


def test_a_wrong_kernel_is_never_chosen(
    slow_elsewhere: None, gpu: CapturingDevice, recurrent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refuse("wrong", gpu, monkeypatch)
    engine = Engine(recurrent, device="tensorrt")
    facts = placement(engine)
    assert facts["placement"]["chosen"] in ("cpu", "tensorrt") and "kernel_ms" not in facts["placement"]
    assert said in facts["placement"]["refused"]["kernel"]
    expected = Engine(recurrent, device="cpu").encode_texts(TEXTS)
    np.testing.assert_allclose(engine.encode_texts(TEXTS), expected, atol=1e-6)


def test_lengths_count_as_well_as_angles() -> None:
    """Of a text that is not divided by its norm."""
    from cir_infer.runtime.recurrent.opening import check_encoder

    class Doubled:
        vocabulary, version = 15, "none"

        def __init__(self, graph: OnnxGraph, factor: float) -> None:
            self._graph, self._factor = graph, factor

        def run(self, feeds: Any) -> Any:
            return {"text": self._graph.run(feeds)["text"] * np.float32(self._factor)}

    from cir_infer.runtime.onnx import OnnxBackend

    cpu = OnnxBackend("cpu", 1).load("text", Model(recurrent_graph(words=15, unit=False)))
    found = check_encoder(Doubled(cpu, 1.0), cpu, 100, 1e-3)  # type: ignore[arg-type]
    assert found["worst_cosine"] > 1 - 1e-9 and found["longest"] == 100
    for factor in (1.05, float("nan")):
        with pytest.raises(DeviceError, match=r"at \d+ tokens (rows differ by 0\.05|NaN)"):
            check_encoder(Doubled(cpu, factor), cpu, 100, 1e-3)  # type: ignore[arg-type]


def test_a_place_that_leaves_an_input_out_is_timed_without_it() -> None:
    """As libraries do with what nothing reads."""
    from cir_infer.runtime.onnx import OnnxBackend
    from cir_infer.runtime.tensorrt.placement import choose_placement

    made = []
    for declared in (("tokens", "lengths"), ("lengths",)):
        g = GraphBuilder()
        g.constant("axes", [1], np.int64)
        g.add("Unsqueeze", [g.add("Cast", ["lengths"], "numbers", to=1), "axes"], "text")
        kinds = {"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}
        model = Model(g.model({name: kinds[name] for name in declared}, {"text": ("f32", ["n", 1])}))
        made.append(OnnxBackend("cpu", 1).load("text", model))
    for names in (("cpu", "tensorrt"), ("tensorrt", "cpu")):
        found = choose_placement(dict(zip(names, made, strict=True)), {}, 8)
        assert {"cpu_ms", "tensorrt_ms"} <= set(found)


def test_other_encoders_say_why_the_kernel_is_none(gpu: CapturingDevice, bundle: Path) -> None:
    refused = placement(Engine(bundle, device="tensorrt"))["placement"]["refused"]
    assert "Div stands where its states are pooled" in refused["kernel"]


def test_the_process_that_tries_the_kernel_answers(tensorrt: Path) -> None:
    """A real one: it finds no GPU, or reads a graph that is none of the kernel's."""
    from cir_infer.runtime.tensorrt.building import check_encoder_apart

    with pytest.raises(DeviceError, match="the GPU cannot be used: no NVIDIA driver"):
        check_encoder_apart(Model(recurrent_graph()), 16, 1e-3)
