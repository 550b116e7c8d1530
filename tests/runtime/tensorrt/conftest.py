"""A machine with an emulated GPU and a TensorRT of each version: real names, real arithmetic on the CPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_infer.bundle.model import Model
from cir_infer.runtime import tensorrt as package
from tests.runtime.tensorrt.gpu import CapturingDevice

HERE = Path(__file__).parent
FAKE = HERE / "fake"
BOUND = ("api", "backend", "building", "chain", "plan_graph", "typed_by_flags", "typed_by_graph")
"""Modules that import `tensorrt`, or one another that does."""
VERSIONS = ("8.6.0", "10.3.0", "10.13.0.35", "11.4.0.106")


def forget_tensorrt() -> None:
    """Modules hold what they imported of one version."""
    sys.modules.pop("tensorrt", None)
    for name in BOUND:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


@pytest.fixture(params=["10.3.0"])
def version(request: pytest.FixtureRequest) -> str:
    """The version of TensorRT; tests that care are parametrised over all."""
    return str(request.param)


@pytest.fixture
def tensorrt(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """TensorRT is installed, here and in child processes, with an empty plan cache; gives its folder."""
    monkeypatch.setenv("CIR_FAKE_TENSORRT", version)
    monkeypatch.setenv("CIR_PLAN_CACHE", str(tmp_path / "plans"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(FAKE))
    forget_tensorrt()
    yield tmp_path / "plans"
    forget_tensorrt()


@pytest.fixture
def gpu_that_builds(tensorrt: Path, monkeypatch: pytest.MonkeyPatch) -> CapturingDevice:
    """A GPU is there: the emulated one. Every plan is built in a process of its own, as on a device."""
    from cir_infer.gpu import context
    from cir_infer.runtime import devices

    device = CapturingDevice()
    monkeypatch.setattr(devices, "missing_gpu", lambda: None)
    monkeypatch.setattr(context, "open_gpu", lambda ordinal=0: device)
    monkeypatch.setattr(context, "open_device", lambda ordinal=0: device)
    from cir_infer.runtime.tensorrt import backend

    monkeypatch.setattr(backend, "driver_version", lambda: "12060")
    # Only this process knows of the GPU.
    monkeypatch.setattr(backend, "check_encoder_apart", lambda *asked: check_encoder_here(device, *asked))
    return device


_built: dict[tuple[Any, ...], tuple[bytes, bytes, float]] = {}
"""What processes have built: most tests open the same bundle, and care for what becomes of its plans."""


@pytest.fixture
def gpu(gpu_that_builds: CapturingDevice, monkeypatch: pytest.MonkeyPatch) -> CapturingDevice:
    """The emulated GPU; a plan that any test has built of the same is not built by a process again."""
    from cir_infer.runtime.tensorrt import api, backend

    build = backend.build_apart

    def build_once(
        name: str, model: Model, limits: Any, workspace: int, timings: bytes, report: Any
    ) -> tuple[Any, float]:
        faked = tuple(sorted(item for item in os.environ.items() if item[0].startswith("CIR_FAKE")))
        key = (faked, name, model.whole(), json.dumps(limits.to_json()), workspace, timings)
        if key not in _built:
            made, seconds = build(name, model, limits, workspace, timings, report)
            _built[key] = made.plan, made.timings, seconds
        plan, kept, seconds = _built[key]
        return api.BuiltPlan(plan, kept), seconds

    monkeypatch.setattr(backend, "build_apart", build_once)
    return gpu_that_builds


def check_encoder_here(device: CapturingDevice, model: Model, tokens: int, furthest: float) -> dict[str, Any]:
    """What the process that tries the recurrent kernel does."""
    from cir_infer.runtime.onnx import OnnxBackend
    from cir_infer.runtime.recurrent.opening import check_encoder, open_encoder

    reference = OnnxBackend("cpu", 1).load("text", model)
    return check_encoder(open_encoder(model, device, tokens), reference, tokens, furthest)
