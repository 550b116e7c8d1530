"""Questions to libraries and drivers, each asked in a process of its own: `asked("cuda", 20)`.

A driver that does not fit its libraries answers with anything from an error to a crash or silence. The
process that asks writes one line of JSON, and whatever else becomes of it is told in words.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cir_infer.errors import CirError, lack, shown
from cir_infer.machine.nvml import Nvml
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.runtime.device_names import ON_GPU, ON_INTEL_GPU, ON_PROCESSOR

__all__ = ["LIBRARIES", "MODEL", "PROBES", "SCORERS", "asked", "main"]

Found = dict[str, Any]

LIBRARIES = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "pycuda": "pycuda.driver",
    "openvino": "openvino",
}
"""Modules to import, by how their libraries are called."""

SCORERS = ("cpu", "cuda")
"""Where rows are scored."""

_MARK = "cir-infer found: "

MODEL = bytes.fromhex(
    "080812003a630a110a01780a017712017922064d61744d756c120570726f62652a1b0802080210014201774a100000803f00"
    "00004000004040000080405a140a0178120f0a0d080112090a0312016e0a02080262140a0179120f0a0d080112090a031201"
    "6e0a02080242040a001011"
)
"""y = x w for rows x of two values, in ONNX; w is [[1, 2], [3, 4]]."""


def asked(name: str, seconds: float, environment: Mapping[str, str] | None = None) -> Found:
    """What a probe found, or {"failed": why}.

    Args:
        name: of `PROBES`.
        seconds: the longest that it may take.
        environment: variables to set for it.
    """
    try:
        command = child_command("cir_infer.machine.probes", name)
        child = start_child(
            command,
            env=child_environment(**(environment or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (CirError, OSError) as error:
        return {"failed": shown(error, 300)}
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"the process gave no answer within {seconds:.0f} s"}
    finally:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.wait()
    for line in reversed(out.decode("utf-8", "replace").splitlines()):
        if line.startswith(_MARK):
            with contextlib.suppress(ValueError):  # cut off, or another thread wrote into it
                return dict(json.loads(line[len(_MARK) :]))
    return {"failed": _ended(child.returncode, err.decode("utf-8", "replace"))}


def _ended(code: int, said: str) -> str:
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    if code >= 0:
        return f"the process ended with code {code}: {shown(Exception(last), 300)}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
    if -code == signal.SIGKILL:
        return "the process was killed, most likely because memory ran out"
    return f"the process crashed ({name})" + (f": {shown(Exception(last), 300)}" if last else "")


def _nvml() -> Found:
    return {"gpus": Nvml.devices()}


_ATTRIBUTES = {
    "multiprocessors": 16,
    "integrated": 18,
    "clock_khz": 13,
    "memory_clock_khz": 36,
    "bus_bits": 37,
    "l2_bytes": 38,
}


def _cuda() -> Found:
    """The driver itself: the CUDA that it is of, and its GPUs."""
    from cir_infer.gpu.driver import missing_gpu

    missing = missing_gpu()
    version = ctypes.c_int()
    found: Found = {"missing": missing, "gpus": [], "cuda": None}
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuDriverGetVersion(ctypes.byref(version)) == 0:
            found["cuda"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
        count = ctypes.c_int()
        if missing is None and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            found["gpus"] = [_gpu(driver, number) for number in range(min(count.value, 64))]
    return found


def _gpu(driver: Any, number: int) -> Found:
    device, text, size = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(text, len(text), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)

    def attribute(of: int) -> int | None:
        value = ctypes.c_int()
        return value.value if driver.cuDeviceGetAttribute(ctypes.byref(value), of, device) == 0 else None

    major, minor = attribute(75), attribute(76)
    return {
        "name": text.value.decode(errors="replace"),
        "compute_capability": f"{major}.{minor}",
        "memory_bytes": size.value,
        **{name: attribute(of) for name, of in _ATTRIBUTES.items()},
    }


def _library(module: str) -> Callable[[], Found]:
    """Whether a library can be imported, and which it is."""

    def look() -> Found:
        if module == "onnxruntime":
            os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            library = importlib.import_module(module)
        except Exception as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
            why = lack(error) or shown(error, 300)
            return {"absent": True} if absent else {"failed": f"cannot be imported: {why}"}
        found: Found = {"version": str(getattr(library, "__version__", "unknown"))}
        if module == "onnxruntime":
            # Of two packages for one module, or of one that was removed, files are left without these.
            if not hasattr(library, "InferenceSession"):
                return {
                    "failed": "is there without its content; "
                    "uninstall onnxruntime and onnxruntime-gpu and install one of them again"
                }
            found["providers"] = list(library.get_available_providers())
        return found

    return look


def _encoders(device: str) -> Callable[[], Found]:
    """A graph on a device; for TensorRT, whose plans take minutes, all that comes before the first plan."""

    def run() -> Found:
        import numpy as np

        from cir_infer.bundle.model import Model
        from cir_infer.runtime.devices import open_backend, open_graphs
        from cir_infer.runtime.plan_policy import PlanPolicy

        if device == "tensorrt":
            said = open_backend(device, None, PlanPolicy()).describe()
            return {
                "runs": True,
                "why": f"{said.get('library', 'TensorRT')} opens; no plan was built for this",
            }
        opened = open_graphs({"image": Model(MODEL)}, device, 1)
        answer = opened.graphs["image"].run({"x": np.array([[1, 1]], np.float32)})["y"]
        if not np.allclose(answer, [[4, 6]], rtol=1e-2):
            return {"runs": False, "why": f"a product of matrices is {shown(answer.tolist())}, not [[4, 6]]"}
        return {"runs": True, "why": f"ran a graph, {opened.backend.describe().get('library', device)}"}

    return run


def _scoring(place: str) -> Callable[[], Found]:
    """The scorer of a place over some rows, held against the definition."""

    def run() -> Found:
        import numpy as np

        from cir_infer.scoring.contract import QueryTerms, Rows, Scorer
        from cir_infer.scoring.cpu import CpuScorer, instruction_sets
        from cir_infer.scoring.reference import ReferenceScorer

        random = np.random.default_rng(0)
        rows = Rows.of(random.standard_normal((500, 64)).astype(np.float16))
        numerators, weights = (
            np.abs(random.standard_normal((1, 2, 64))).astype(np.float32) for _ in range(2)
        )
        terms = QueryTerms(numerators, weights, ("a", "b"))
        scorer: Scorer
        if place == "cpu":
            scorer, how = CpuScorer(rows), f"kernels for {instruction_sets()[0]}"
        else:
            from cir_infer.scoring.cuda import CudaScorer

            scorer, how = CudaScorer(rows), "the CUDA kernels"
        found, right = scorer.topk(terms, 10), ReferenceScorer(rows).topk(terms, 10)
        if not (np.array_equal(found.rows, right.rows) and np.array_equal(found.scores, right.scores)):
            return {"runs": False, "why": f"{how} answer otherwise than the definition of the score"}
        return {"runs": True, "why": f"answered as defined, {how}"}

    return run


PROBES: Mapping[str, Callable[[], Found]] = {
    "nvml": _nvml,
    "cuda": _cuda,
    **{f"library:{module}": _library(module) for module in LIBRARIES.values()},
    **{f"encoders:{device}": _encoders(device) for device in (*ON_PROCESSOR, *ON_INTEL_GPU, *ON_GPU)},
    **{f"scoring:{place}": _scoring(place) for place in SCORERS},
}
"""What can be asked. Each returns plain values."""


def main(name: str) -> None:
    """Ask here, and print what was found."""
    try:
        found = PROBES[name]()
    except (Exception, SystemExit) as error:
        failed = shown(error, 600)
        found = {"failed": failed if isinstance(error, CirError) else f"{type(error).__name__}: {failed}"}
    # After whatever libraries print while they are loaded, and before they crash at the end.
    sys.stdout.write(f"\n{_MARK}{json.dumps(found)}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
