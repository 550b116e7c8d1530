"""The process that builds plans and tries what is unknown: if TensorRT or a kernel dies, only this one does.

Reads one JSON job on stdin and answers with JSON lines on stdout: {"progress": 0.4, "phase": "..."} any
number of times, then {"done": {...}} or {"error": "...", "kind": "BundleError"}. Files carry what is large.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from cir_infer.errors import BundleError, CirError
from cir_infer.runtime.tensorrt.profiles import Limits

__all__ = ["main"]


def main() -> int:
    """See the top of this file."""
    job = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"done": _TASKS[job["task"]](job)}
    except CirError as error:
        answer = {"error": str(error), "kind": "BundleError" if isinstance(error, BundleError) else ""}
    except (MemoryError, ImportError, OSError) as error:
        answer = {"error": f"{type(error).__name__}: {error}", "kind": ""}
    print(json.dumps(answer), flush=True)
    return 0


def _build(job: dict[str, Any]) -> dict[str, Any]:
    from cir_infer.runtime.tensorrt.api import build_plan

    def report(share: float, phase: str) -> None:
        print(json.dumps({"progress": share, "phase": phase}), flush=True)

    begun = time.monotonic()
    built = build_plan(
        job["name"],
        Path(job["graph"]),
        Limits(**job["limits"]),
        job["workspace"],
        Path(job["timings"]).read_bytes(),
        report,
    )
    Path(job["plan"]).write_bytes(built.plan)
    Path(job["timings"]).write_bytes(built.timings)
    return {"seconds": round(time.monotonic() - begun, 1)}


def _try(job: dict[str, Any]) -> dict[str, Any]:
    """Whether TensorRT takes a plan: read it and make a context, which is where foreign plans crash."""
    from cir_infer.runtime.tensorrt.api import LoadedPlan
    from cir_infer.runtime.tensorrt.profiles import SINGLE

    plan = LoadedPlan(job["name"], Path(job["plan"]).read_bytes())
    plan.context(SINGLE, 0)
    return {}


def _encode(job: dict[str, Any]) -> dict[str, Any]:
    """Whether the recurrent kernel gives what ONNX Runtime gives."""
    from cir_infer.bundle.model import read_model
    from cir_infer.gpu.context import open_gpu
    from cir_infer.runtime.onnx import OnnxBackend
    from cir_infer.runtime.recurrent.opening import check_encoder, open_encoder

    model = read_model(Path(job["graph"]))
    reference = OnnxBackend("cpu", 1).load("text", model)
    encoder = open_encoder(model, open_gpu(), job["tokens"])
    return check_encoder(encoder, reference, job["tokens"], job["furthest"])


_TASKS = {"build": _build, "try": _try, "encode": _encode}

if __name__ == "__main__":
    sys.exit(main())
