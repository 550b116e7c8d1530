"""The whole examination: the machine, its libraries, what runs where and why not, and what to do about it."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cir_infer
from cir_infer.gpu.fatbins import RECURRENT, SCORE, place_of
from cir_infer.machine.description import describe_machine, memory_bytes, text_of
from cir_infer.machine.probes import LIBRARIES, SCORERS, asked
from cir_infer.runtime.device_names import ON_GPU, ON_INTEL_GPU, ON_PROCESSOR

__all__ = ["advice", "examine"]

Facts = dict[str, Any]
Ask = Callable[..., Facts]

_QUICK, _SLOW = 30.0, 120.0
"""Seconds for a question to a driver or library, and for a graph on a GPU, which compiles code for itself."""

_LEAST_FREE = 1 << 30


def examine(
    root: Path = Path("/"), ask: Ask = asked, progress: Callable[[str], object] = lambda _: None
) -> Facts:
    """Look at this machine; takes seconds on a processor, up to minutes with a GPU.

    Args:
        root: where /proc, /sys and /etc are looked up.
        ask: how questions are put, see `asked`.
        progress: called with what is being asked.

    Returns:
        Plain values: "machine", "python", "memory", "driver", "libraries", "kernels", "runs" and "advice".
        Whatever cannot be found out is None or says "failed"; nothing is raised.
    """

    def put(name: str, seconds: float = _QUICK) -> Facts:
        progress(name)
        return ask(name, seconds)

    driver = put("cuda")
    failed = driver.get("failed")
    missing = f"the NVIDIA driver was asked, and {failed}" if failed else driver.get("missing")
    nvml = put("nvml") if missing is None else {}
    found: Facts = {
        "kind": "doctor",
        "cir_infer": cir_infer.__version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(root, nvml.get("gpus", ())),
        "python": _python(),
        "memory": _memory(root),
        "driver": {"missing": missing, "cuda": driver.get("cuda"), "gpus": driver.get("gpus", [])},
        "libraries": {name: put(f"library:{module}") for name, module in LIBRARIES.items()},
        "kernels": {name: _size_of(name) for name in (SCORE, RECURRENT)},
        "runs": list(_runs(put, missing)),
    }
    found["advice"] = list(advice(found))
    return found


def _runs(put: Callable[..., Facts], missing: str | None) -> Iterator[Facts]:
    """Every place for encoders and for scoring: does it run, and why not."""
    places = [("encoders", place) for place in (*ON_PROCESSOR, *ON_INTEL_GPU, *ON_GPU)]
    places += [("scoring", place) for place in SCORERS]
    for what, place in places:
        on_gpu = place in ON_GPU
        if on_gpu and missing is not None:
            answer: Facts = {"runs": False, "why": missing}
        else:
            answer = put(f"{what}:{place}", _SLOW if on_gpu else _QUICK)
        yield {
            "what": what,
            "where": place,
            "runs": bool(answer.get("runs", False)),
            "why": answer.get("why") or answer.get("failed") or "it did not say why",
        }


def advice(found: Mapping[str, Any]) -> Iterator[str]:
    """What somebody would do about this machine, the most important first."""
    libraries, jetson = found["libraries"], found["machine"].get("jetson")
    works = {(run["what"], run["where"]): run["runs"] for run in found["runs"]}
    if {"onnxruntime", "onnxruntime-gpu"} <= set(found["machine"]["libraries"]):
        yield "onnxruntime and onnxruntime-gpu are both installed: uninstall both, then install one of them"
    if not works[("encoders", "cpu")]:
        yield "no encoder runs on the processor: pip install --force-reinstall onnxruntime numpy"
    if not works[("scoring", "cpu")]:
        yield (
            "the scorer of the processor does not run: pip install --force-reinstall --no-deps cir-infer, or "
            "pip install . in a copy of the sources"
        )
    if jetson and found["driver"]["missing"]:
        yield (
            "a Jetson whose GPU is not to be seen: a container needs --runtime nvidia, a user the group video"
        )
    elif found["driver"]["missing"] is None:
        if libraries["pycuda"].get("absent"):
            yield "PyCUDA is not installed, which the GPU needs: pip install pycuda, where CUDA's headers are"
        if libraries["tensorrt"].get("absent"):
            yield (
                "TensorRT is not to be seen here: make the environment with --system-site-packages"
                if jetson
                else "TensorRT is not installed: pip install 'cir-infer[gpu]'"
            )
        if found["kernels"][SCORE] is None:
            yield "the CUDA kernels are missing: install again with nvcc on the PATH, or from a wheel"
    if jetson and jetson.get("l4t") and int(jetson["l4t"].partition(".")[0]) < 36:
        yield "JetPack 5 or older: its TensorRT is older than 8.6, so only the processor can be used"
    mode = (jetson or {}).get("power_mode")
    if mode and not mode.startswith("MAXN"):
        yield f"power mode {mode}: build plans and measure in the mode that you will use (sudo nvpmodel -q)"
    free = found["memory"]["available_bytes"]
    if free is not None and free < _LEAST_FREE:
        yield f"only {free >> 20} MiB of memory are free; see docs/deploy.md, memory and power"
    governor = found["machine"]["cpu"].get("governor")
    if governor == "powersave" and not jetson:
        yield "the processor's clock governor is powersave: figures measured now may be low"


def _python() -> Facts:
    own = sys.prefix != sys.base_prefix
    inherits = (
        "true" in text_of(Path(sys.prefix) / "pyvenv.cfg").partition("include-system-site-packages")[2][:10]
    )
    return {
        "version": sys.version.split()[0],
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "environment": own,
        "sees_system_packages": inherits if own else True,
    }


def _memory(root: Path) -> Facts:
    """Bytes that are free, of memory and where plans would be kept."""
    disk = None
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        folder = Path(os.environ.get("CIR_PLAN_CACHE") or Path.home())
        while not folder.exists():
            folder = folder.parent
        disk = shutil.disk_usage(folder).free
    return {"available_bytes": memory_bytes(root, "MemAvailable"), "disk_bytes": disk}


def _size_of(fatbin: str) -> int | None:
    place = place_of(fatbin)
    return None if place is None else place.stat().st_size
