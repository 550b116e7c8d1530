#!/usr/bin/env python3
"""Our use of TensorRT against what can be had without a GPU: `make tensorrt-check`.

Downloads the Python bindings of TensorRT 10 and 11 (1.3 MB each) for this Python, compares what they offer
with the tables that the tests use, and imports our module of TensorRT calls with each of them, over empty
stand-ins for its libraries.

Then it builds plans, really: TensorRT for RTX (NVIDIA's proprietary wheel, 146 MB, x86-64) compiles without a
GPU, and behind the bindings of TensorRT 11 it runs our own building code, in its process apart, on the graphs
of every system. Its plans are for RTX cards: that a graph is read, typed and compiled is what this shows, and
not that it runs.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "tests" / "runtime" / "tensorrt" / "api"
BUILD = ROOT / "build" / "tensorrt"
WHEELS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.0.35": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
RTX = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "0.5.0", "manylinux_2_28_x86_64")
"""ONNX Runtime's plugin for RTX cards; the only wheel on the public index that holds the libraries."""
RTX_BINDING = "11.4.0.106"
BUILDS = "tests/export/test_tensorrt_builds.py"
PROGRAM = """
import tensorrt as trt
from cir_infer.runtime.tensorrt import api, typed_by_graph
log = api._Log()
log.log(trt.ILogger.ERROR, "said by  the real binding")
assert log.said() == ": said by the real binding"
seen = []
monitor = typed_by_graph._Monitor(lambda share, phase: seen.append((share, phase)))
monitor.phase_start("outer", None, 2)
assert monitor.step_complete("outer", 0) and seen == [(0.5, "outer")]
print("ok", api.VERSION)
"""

sys.path.insert(0, str(ROOT))

from tools.packages.wheels import download  # noqa: E402
from tools.tensorrt import bindings  # noqa: E402


def check_binding(version: str, package: str) -> None:
    """One version; raises where something differs."""
    folder = BUILD / version
    binding = folder / "tensorrt" / "tensorrt.so"
    if not binding.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(download(folder, f"{package}=={version}")) as archive:
            binding.parent.mkdir(exist_ok=True)
            binding.write_bytes(archive.read("tensorrt_bindings/tensorrt.so"))
        binding.with_name("__init__.py").write_text(f'from .tensorrt import *\n\n__version__ = "{version}"\n')
    libraries = folder / "libraries"
    libraries.mkdir(exist_ok=True)
    bindings.stand_ins(binding, libraries)
    tool = [sys.executable, bindings.__file__, str(binding), "-o", str(folder)]
    subprocess.run(tool, check=True, capture_output=True)
    found = json.loads((folder / f"{version}.json").read_text())
    if found != json.loads((TABLES / f"{version}.json").read_text()):
        sys.exit(f"error: TensorRT {version} offers something else than {TABLES / version}.json says")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(libraries)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment, cwd=ROOT)


def rtx_environment() -> dict[str, str]:
    """In which a process finds TensorRT for RTX behind TensorRT's bindings; it is downloaded once."""
    folder = BUILD / "rtx"
    libraries = folder / "libraries"
    if not libraries.exists():
        package, version, tag = RTX
        unpacked = folder / "unpacked"
        unpacked.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(download(folder, f"{package}=={version}", "--platform", tag)) as archive:
            for member in archive.namelist():
                for name in ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"):
                    if Path(member).name.startswith(name):
                        (unpacked / name).write_bytes(archive.read(member))
        unpacked.rename(libraries)
    binding = BUILD / RTX_BINDING
    if not (binding / "libraries").exists():
        check_binding(RTX_BINDING, WHEELS[RTX_BINDING])
    names = [library.name for library in (binding / "libraries").iterdir()]
    for name in names:
        command = ["cc", "-shared", "-fPIC", "-O1", str(Path(__file__).with_name("rtx.c")), "-ldl"]
        subprocess.run([*command, f"-Wl,-soname,{name}", "-o", str(libraries / name)], check=True)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(binding), str(ROOT)]),
        "LD_LIBRARY_PATH": str(libraries),
        "CIR_TENSORRT_RTX": str(libraries),
    }


def check_builds() -> None:
    """Plans of every system's graphs; raises where one cannot be built."""
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "auto", BUILDS]
    subprocess.run(tests, check=True, env=rtx_environment(), cwd=ROOT)


def main() -> None:
    """See the top of this file."""
    for version, package in WHEELS.items():
        try:
            check_binding(version, package)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode(errors="replace")[-500:]
            sys.exit(f"error: TensorRT {version}: {Path(error.cmd[0]).name} failed {said}")
    if platform.machine() != "x86_64":
        sys.exit(
            f"error: plans are built on x86-64 only, this is {platform.machine()}; the bindings are fine"
        )
    try:
        check_builds()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {Path(error.cmd[0]).name} failed, see above")


if __name__ == "__main__":
    main()
