#!/usr/bin/env python3
"""Our use of TensorRT against the real Python bindings of 10 and 11: `make tensorrt-check`. Needs no GPU.

Downloads the bindings (1.3 MB each) for this Python, compares what they offer with the tables that the tests
use, and imports our module of TensorRT calls with each of them, over empty stand-ins for its libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "tests" / "runtime" / "tensorrt" / "api"
BUILD = ROOT / "build" / "tensorrt"
WHEELS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.0.35": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
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

sys.path.insert(0, str(ROOT / "tools"))

import tensorrt_api  # noqa: E402


def check(version: str, package: str) -> None:
    """One version; raises where something differs."""
    folder = BUILD / version
    binding = folder / "tensorrt" / "tensorrt.so"
    if not binding.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wheel = ["--no-deps", "--only-binary=:all:", "-q", "-d", str(folder), f"{package}=={version}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *wheel], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            binding.parent.mkdir(exist_ok=True)
            binding.write_bytes(archive.read("tensorrt_bindings/tensorrt.so"))
        binding.with_name("__init__.py").write_text(f'from .tensorrt import *\n\n__version__ = "{version}"\n')
    libraries = folder / "libraries"
    libraries.mkdir(exist_ok=True)
    tensorrt_api.stand_ins(binding, libraries)
    tool = [sys.executable, str(ROOT / "tools" / "tensorrt_api.py"), str(binding), "-o", str(folder)]
    subprocess.run(tool, check=True, capture_output=True)
    found = json.loads((folder / f"{version}.json").read_text())
    if found != json.loads((TABLES / f"{version}.json").read_text()):
        sys.exit(f"error: TensorRT {version} offers something else than {TABLES / version}.json says")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(libraries)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)


def main() -> None:
    """See the top of this file."""
    for version, package in WHEELS.items():
        try:
            check(version, package)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode(errors="replace")[-500:]
            sys.exit(f"error: TensorRT {version}: {Path(error.cmd[0]).name} failed {said}")


if __name__ == "__main__":
    main()
