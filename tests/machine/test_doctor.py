"""The doctor on this machine, on one where nothing is installed, and on odd ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from cir_bench.commands import main
from cir_infer.machine import probes
from cir_infer.machine.findings import examine
from cir_infer.machine.page import page
from cir_infer.machine.probes import _MARK, MODEL, asked

ROOT = Path(__file__).parents[2]


def test_here_it_tells_what_runs_and_why_not(capsys) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    runs = {(run["what"], run["where"]): run for run in found["runs"]}
    assert runs["encoders", "cpu"]["runs"] and "onnxruntime" in runs["encoders", "cpu"]["why"]
    assert runs["scoring", "cpu"]["runs"]
    assert all(run["why"] for run in found["runs"])
    text = page(found)
    assert "takes cpu" in text and all(len(line) <= 100 for line in text.splitlines())
    assert str(Path.home()) not in text or len(str(Path.home())) < 2


def test_where_nothing_is_installed_it_says_so_without_a_traceback(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    (tmp_path / "sources").mkdir()
    shutil.copytree(
        ROOT / "cir_infer",
        tmp_path / "sources" / "cir_infer",
        ignore=shutil.ignore_patterns("*.fatbin", "*.so"),
    )
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-m", "cir_infer.machine"],
        cwd=tmp_path / "sources",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "takes nothing" in done.stdout and "pip install" in done.stdout
    assert "onnxruntime       not installed" in done.stdout


DRIVERS = {
    "of another kind": ("int other() { return 0; }", "cannot be used"),
    "that crashes": ("int cuInit(int x) { *(volatile int*)0 = x; return 0; }", "SIGSEGV"),
    "that hangs": ("#include <unistd.h>\nint cuInit(int x) { for (;;) pause(); }", "no answer within"),
    "that does not fit": (
        "int cuInit(int x) { return 803; } int cuDeviceGetCount(int* c) { return 0; }\n"
        "int cuDriverGetVersion(int* v) { *v = 12040; return 0; }",
        "error 803",
    ),
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("kind", DRIVERS)
def test_a_driver(kind: str, tmp_path: Path) -> None:
    source, said = DRIVERS[kind]
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", "-xc", "-", "-o", library], input=source, text=True, check=True
    )

    def ask(name: str, seconds: float) -> dict:
        if name != "cuda":
            return {"absent": True}
        limit = 1 if "hangs" in kind else seconds
        return asked(name, limit, {"LD_LIBRARY_PATH": str(tmp_path)})

    found = examine(ask=ask)
    assert said in found["driver"]["missing"]
    assert said in page(found)


def test_a_broken_library_is_told_as_such(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tensorrt.py").write_text("import os\nos.abort()\n")
    (tmp_path / "openvino.py").write_text("raise ImportError('libopenvino.so: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "SIGABRT" in asked("library:tensorrt", 30)["failed"]
    assert "libopenvino.so" in asked("library:openvino", 30)["failed"]


def test_a_jetson_in_a_container_and_its_remedies(tmp_path: Path) -> None:
    for name, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        "proc/meminfo": "MemTotal: 7990000 kB\nMemAvailable: 512000 kB\n",
        "var/lib/nvpmodel/status": "pmode:0001",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    gpu = {"name": "Orin", "compute_capability": "8.7", "memory_bytes": 7 << 30, "integrated": 1}
    gpu |= {"multiprocessors": 8, "memory_clock_khz": 2_133_000, "bus_bits": 128}
    told = {"cuda": {"missing": None, "cuda": "12.6", "gpus": [gpu]}, "library:tensorrt": {"absent": True}}

    found = examine(tmp_path, ask=lambda name, _: told.get(name, {"failed": "it has \x1b[31mcolour"}))
    text = page(found)
    assert "Orin Nano" in text and "68 GB/s" in text and "\x1b" not in text
    said = " ".join(found["advice"])
    assert "--system-site-packages" in said and "MiB of memory" in said and "power mode 1" in said
    missing = examine(tmp_path, ask=lambda *_: {"missing": "no driver"})
    assert "--runtime nvidia" in " ".join(missing["advice"])


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = examine(tmp_path, ask=lambda *_: {})
    assert not any(run["runs"] for run in found["runs"])
    assert "unknown" in page(found)


@pytest.mark.parametrize(("columns", "width"), [(48, 48), (72, 72), (200, 100), (0, 48)])
def test_a_page_fits_where_it_is_shown(columns: int, width: int, tmp_path: Path) -> None:
    found = examine(tmp_path, ask=lambda *_: {"failed": "because of " * 20})
    lines = page(found, columns).splitlines()
    assert width - 12 < max(len(line) for line in lines) <= width


def test_an_answer_that_was_cut_off_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        probes, "child_command", lambda *_: [sys.executable, "-c", f"print({_MARK!r} + '{{')"]
    )
    assert "ended with code 0" in asked("cuda", 60)["failed"]


def test_the_graph_that_is_tried_is_what_it_says() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(MODEL)
    onnx.checker.check_model(model, full_check=True)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert np.array_equal(weight, [[1, 2], [3, 4]])
