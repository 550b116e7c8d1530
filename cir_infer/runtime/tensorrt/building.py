"""Builds and tries in a process of its own: if that runs out of memory or crashes, this one goes on."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cir_infer.bundle.model import MOST_INSIDE, Model, write_model
from cir_infer.console.progress import progress_of, tell
from cir_infer.errors import BundleError, DeviceError
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.processes.scratch import scratch_folder
from cir_infer.runtime.tensorrt.api import BuiltPlan
from cir_infer.runtime.tensorrt.profiles import Limits

__all__ = ["build_apart", "build_progress", "check_encoder_apart", "try_apart", "workspace_for"]

_log = logging.getLogger(__name__)

_LEAST_WORKSPACE = 64 << 20
_MOST_WORKSPACE = 4 << 30

Report = Callable[[float, str], None]


def workspace_for(free: int, integrated: bool) -> int:
    """Scratch memory that building may use, in bytes.

    A builder's tactics beyond a few hundred MiB seldom win, and memory that is asked for is taken while they
    are tried. On an integrated GPU the host's own programs live in the same memory.

    Args:
        free: GPU bytes that are free now.
        integrated: whether host and GPU share their memory.
    """
    share = free // 4 if integrated else free // 2
    return max(_LEAST_WORKSPACE, min(_MOST_WORKSPACE, share))


@contextmanager
def build_progress(what: str) -> Iterator[Report]:
    """A bar on a terminal, a line for each tenth elsewhere; both with the time that is left."""
    begun, shown, percent = time.monotonic(), 0.0, 0

    def log(share: float, phase: str) -> None:
        nonlocal shown
        if share >= shown + 0.1:
            shown = share
            left = (time.monotonic() - begun) * (1 - share) / share
            tell(f"{what}: {100 * share:.0f}%, about {left:.0f} s left ({phase})")

    if not sys.stderr.isatty():
        yield log
        return

    with progress_of(100, what, "%") as update:

        def report(share: float, _: str) -> None:
            nonlocal percent
            before, percent = percent, min(100, round(100 * share))
            update(percent - before)

        yield report


def build_apart(
    name: str, model: Model, limits: Limits, workspace: int, timings: bytes, report: Report
) -> tuple[BuiltPlan, float]:
    """Build a plan in a process of its own.

    Returns:
        The plan and the seconds that it took.

    Raises:
        BundleError: TensorRT cannot read the graph.
        DeviceError: it cannot be built, or the process died; the message says of what.
    """
    with scratch_folder("cir-plan-") as folder:
        graph, plan, kept = folder / "graph.onnx", folder / "plan", folder / "timings"
        write_model(_inside(model), graph)
        kept.write_bytes(timings)
        job = {
            "task": "build",
            "name": name,
            "graph": str(graph),
            "plan": str(plan),
            "timings": str(kept),
            "limits": limits.to_json(),
            "workspace": workspace,
        }
        done = _run(job, f"building the plan of the {name} graph", report)
        return BuiltPlan(plan.read_bytes(), kept.read_bytes()), float(done["seconds"])


def _inside(model: Model) -> Model:
    """With its weights inside where they fit, which every TensorRT reads."""
    return Model(model.whole()) if model.size <= MOST_INSIDE else model


def try_apart(name: str, plan: bytes) -> None:
    """Let a process of its own read a plan, so that a crash is only its own.

    Raises:
        DeviceError: TensorRT refuses the plan, or died of it.
    """
    with scratch_folder("cir-plan-") as folder:
        path = folder / "plan"
        path.write_bytes(plan)
        job = {"task": "try", "name": name, "plan": str(path)}
        _run(job, f"trying the plan of the {name} graph", lambda *_: None)


def check_encoder_apart(model: Model, tokens: int, furthest: float) -> dict[str, Any]:
    """Let a process of its own compare the recurrent kernel with ONNX Runtime on the CPU.

    Args:
        model: the text graph.
        tokens: most tokens of a text.
        furthest: see `check_encoder`.

    Returns:
        What `check_encoder` does.

    Raises:
        DeviceError: the kernel does not compute this graph, answers otherwise, or died.
        BundleError: the graph cannot be read.
    """
    with scratch_folder("cir-plan-") as folder:
        path = folder / "graph.onnx"
        write_model(model, path)
        job = {"task": "encode", "graph": str(path), "tokens": tokens, "furthest": furthest}
        return _run(job, "checking the recurrent kernel", lambda *_: None, "the recurrent kernel")


def _run(job: dict[str, Any], what: str, report: Report, who: str = "TensorRT") -> dict[str, Any]:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        worker = start_child(
            child_command("cir_infer.runtime.tensorrt.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=child_environment(),
        )
        assert worker.stdin is not None and worker.stdout is not None
        answer: dict[str, Any] = {}
        try:
            with worker.stdin as stdin:
                stdin.write(json.dumps(job))
            for line in worker.stdout:
                answer = _answer(line) or answer
                if "progress" in answer:
                    report(float(answer["progress"]), str(answer.get("phase", "")))
            code = worker.wait()
        except BrokenPipeError:
            code = worker.wait()
        except BaseException:
            worker.kill()  # e.g. an interrupt: nobody waits for the build any more
            worker.wait()
            raise
        finally:
            worker.stdout.close()
        complaints.seek(0)
        said = " ".join(complaints.read()[-600:].split())
    if "done" in answer:
        return dict(answer["done"])
    if "error" in answer:
        kind = BundleError if answer.get("kind") == "BundleError" else DeviceError
        raise kind(str(answer["error"]))
    raise DeviceError(f"{what}: {_death(code, who)}{f' ({said})' if said else ''}")


def _answer(line: str) -> dict[str, Any]:
    """A line of the worker's; TensorRT's libraries may print others."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _death(code: int, who: str) -> str:
    """What an exit code says, and what to do."""
    if code == -signal.SIGKILL:
        return (
            "the process was killed, most likely because memory ran out; close other programs, add swap, or "
            "set CIR_PLAN_BATCH to a smaller number"
        )
    if code < 0:
        return f"{who} crashed (signal {-code}); use device='cuda' or device='cpu'"
    return f"the process ended with code {code}"
