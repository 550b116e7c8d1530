"""A bundle says what its int8 graphs were made for, and no device runs those made for another in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cir_export.commands.export import main as export
from cir_infer import Engine
from cir_infer.errors import DeviceError
from cir_infer.gpu import driver
from tests.bundles import int8_made_for, write_tiny_bundle
from tests.runtime.tensorrt.gpu import CapturingDevice

REMEDY = r"form 'cpu'; expected 'tensorrt'.*`cir-export .*--int8-for tensorrt`"


@pytest.fixture
def for_cpu(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "for-cpu.cir", **int8_made_for("cpu"))


@pytest.fixture
def for_tensorrt(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "for-tensorrt.cir", **int8_made_for("tensorrt"))


@pytest.mark.parametrize("device", ["tensorrt", "ort-tensorrt"])
@pytest.mark.parametrize("missing_plan", ["build", "onnxruntime", "refuse"])
def test_the_form_for_a_cpu_is_refused_by_name(
    gpu: CapturingDevice, for_cpu: Path, tensorrt: Path, device: str, missing_plan: str
) -> None:
    with pytest.raises(DeviceError, match=f"device {device!r}.*{REMEDY}"):
        Engine(for_cpu, device=device, missing_plan=missing_plan)
    assert not list(tensorrt.glob("*.plan")), "nothing was built"


def test_plans_are_not_built_of_it(
    gpu: CapturingDevice, for_cpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "missing_gpu", lambda: None)
    assert export([str(for_cpu), "--tensorrt"]) == 1
    assert "--int8-for tensorrt" in capsys.readouterr().err


def test_auto_leaves_tensorrt_out_and_says_why(
    gpu: CapturingDevice, for_cpu: Path, tensorrt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(for_cpu)
    assert engine.device == "cpu" and not list(tensorrt.glob("*.plan"))
    (said,) = [record for record in caplog.records if "device auto" in record.message]
    assert said.levelno == logging.WARNING, "a GPU stays unused"
    assert "taking the CPU" in said.message and "--int8-for tensorrt" in said.message


@pytest.mark.parametrize("installed", [True, False])
def test_auto_says_that_openvino_may_be_faster_and_does_not_take_it(
    for_cpu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, installed: bool
) -> None:
    """What answers is decided by the bundle and the hardware, not by what else is installed."""
    monkeypatch.setattr("cir_infer.runtime.int8_form.is_installed", lambda module: installed)
    monkeypatch.setattr("cir_infer.runtime.devices.missing_gpu", lambda: "no GPU")
    with caplog.at_level(logging.INFO, "cir_infer"):
        assert Engine(for_cpu, threads=1).device == "cpu"
    assert ("device='openvino' may run" in caplog.text) is installed


def test_the_form_for_tensorrt_runs_there(
    gpu: CapturingDevice, for_tensorrt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for device in ("tensorrt", "auto"):
        assert Engine(for_tensorrt, device=device).device == "tensorrt"
    assert "int8" not in caplog.text


def test_the_cpu_runs_the_form_for_tensorrt_and_says_once_that_it_is_slow(
    for_tensorrt: Path, pictures: list[Path], engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Engine(for_tensorrt, device="cpu", threads=1)
    (said,) = [record for record in caplog.records if "form" in record.message]
    assert said.levelno == logging.WARNING and "slower than float32" in said.message
    assert "`cir-export FLOAT32.cir --precision int8 --calibrate DIR`" in said.message
    assert (ours.encode_images(pictures[:2]) == engine.encode_images(pictures[:2])).all()


@pytest.mark.parametrize(
    "fields",
    [
        int8_made_for("cpu"),
        {"precision": "int8"},
        {"precision": "int8", "parity": {"precision": [1]}},
        {"precision": "float16", "parity": {"precision": {"form": "tensorrt"}}},
    ],
    ids=["cpu", "unsaid", "senseless", "float16"],
)
def test_nothing_is_said_of_others(
    tmp_path: Path, fields: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    assert Engine(write_tiny_bundle(tmp_path / "other.cir", **fields), device="cpu").device == "cpu"
    assert caplog.text == ""
