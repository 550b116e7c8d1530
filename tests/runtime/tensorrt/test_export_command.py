"""`cir-export BUNDLE --tensorrt`, as on a device: without torch; refused in words where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cir_export.commands.export import main
from cir_infer.gpu import driver
from tests.runtime.tensorrt.gpu import CapturingDevice


def test_plans_are_built_on_the_device(
    gpu: CapturingDevice,
    tensorrt: Path,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "missing_gpu", lambda: None)
    for module in ("torch", "onnxscript"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it is an ImportError
    assert main([str(bundle), "--tensorrt"]) == 0
    out = capsys.readouterr().out
    assert "plans for an emulated GPU (tensorrt 10.3.0)" in out and "within 0 of ONNX Runtime" in out
    assert len(list(tensorrt.glob("*.plan"))) == 3
    assert main([str(bundle), "--tensorrt", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["plans"]["plans"]) == {"image", "text", "compose"}


def test_without_a_gpu_it_is_refused_before_anything_is_exported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (str(bundle), str(tmp_path / "model.pt")):
        assert main([model, "--tensorrt"]) == 1
        assert "run `cir-export BUNDLE --tensorrt` there" in capsys.readouterr().err


def test_a_device_has_none_of_the_host_sides_packages() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from cir_export.commands.export import main\n"
        "sys.exit(main(['shop.cir', '--tensorrt']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "there is none (no NVIDIA driver" in done.stderr
