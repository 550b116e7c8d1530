#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one offline run of eight minutes: `make gpu-check`.

The most valuable facts come first, see docs/gpu-check.md. Each step is a process of its own with a limit.
benchmarks/results/<gpu>-<date>.json is written anew after each, and after each measurement of the benchmark:
what a run that is cut short has found is there. A step that fails is recorded and the next one still runs.
Exit code: 1 if any failed, 3 if none failed and some could not run, else 0.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "evaluation")]

from tools.cuda import cuda_sources, gpu_model  # noqa: E402

TESTS = ("tests/scoring/test_cuda_gpu.py", "tests/gpu/test_recurrent_kernel.py")
FIRST = (
    "(TestExactKernel or TestTensorCores or TestInt8Shadow) and (duplicates_go_by_row_number or many_rows) "
    "or streamed_rows or large_batches or small_layers"
)
"""A case of each family of kernels."""
SANITIZED = (
    "(TestExactKernel or TestTensorCores or TestInt8Shadow) and (duplicates_go_by_row_number and 24) "
    "or streamed_rows or small_layers"
)
"""The same, of sizes that last seconds under a sanitizer."""
PROFILED = (
    "dram__bytes.sum.per_second",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__time_duration.sum",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio",
)
"""What Nsight Compute counts: where the bytes and the issue slots go."""
_LOOK_EVERY = 3.0
LEAST = 5.0
"""Seconds; a step that has less is left out, by name."""

Step = Callable[[float, Path], dict[str, Any]]

BENCHMARK = (sys.executable, "-m", "cir_bench.cuda_scoring")
"""What measures a part, whose name follows."""

_WATCH = "import os, sys; os.read(0, 1) or os.killpg(int(sys.argv[1]), 9)"


@contextlib.contextmanager
def _watched(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Should this program be killed, all that a step has started does not stay on the GPU.

    The watching process reads from a pipe, which ends with this program however that ends. A signal to a step
    at its parent's death would not reach what a sanitizer or a profiler runs.
    """
    command = [sys.executable, "-S", "-c", _WATCH, str(process.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watch:
        assert watch.stdin is not None
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                os.write(watch.stdin.fileno(), b".")


def run(
    name: str,
    command: list[str],
    limit: float,
    log: Path,
    look: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """One step as a process of its own, its output in a log and its end on the terminal.

    `look` is called every few seconds and once at the end.
    """
    print(f"== {name}: {' '.join(command)}", flush=True)
    begun = time.monotonic()
    ours = [str(ROOT), *(str(ROOT / part) for part in ("evaluation", "export", "benchmarks"))]
    paths = os.pathsep.join([*ours, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "ORT_DISABLE_TELEMETRY": "1"}
    with log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"== {name}\n")
        file.flush()
        start = file.tell()
        # Into the log as it comes, so that a run that is cut short tells how far it was.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        code = 124
        try:
            with _watched(process):
                while time.monotonic() < begun + limit:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        code = process.wait(min(_LOOK_EVERY, max(0.0, begun + limit - time.monotonic())))
                        break
                    look()
        finally:
            # A child of the child that lives on would keep the GPU busy beside what is measured next.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            look()  # also where this run is ended from outside: what the step has measured is kept
        if code == 124:
            file.write(f"stopped after {limit:.0f} s\n")
    with log.open("rb") as written:
        written.seek(start)
        output = written.read().decode("utf-8", "replace")
    print("\n".join(output.splitlines()[-12:]), flush=True)
    return {"passed": code == 0, "exit_code": code, "seconds": round(time.monotonic() - begun, 1)}


def skipped(why: str) -> dict[str, Any]:
    """A step that has not run: neither passed nor failed."""
    return {"passed": None, "skipped": why}


def unused(folder: Path, name: str) -> Path:
    """Where a run writes: never over what an earlier one of the day has found."""
    numbers = itertools.count(2)
    path = folder / f"{name}.json"
    while path.exists():
        path = folder / f"{name}-{next(numbers)}.json"
    return path


def write(result: dict[str, Any], path: Path) -> None:
    """What is known so far; a reader never sees half of it."""
    half = path.with_name(f".{path.name}.part")
    half.write_text(json.dumps(result, indent=1) + "\n")
    half.replace(path)


def perform(
    steps: Sequence[tuple[str, float, Step]],
    seconds: float,
    log: Path,
    keep: Callable[[str, dict[str, Any]], object],
) -> None:
    """Run steps in their order, each for at most its own seconds and until the time of all is up."""
    end = time.monotonic() + seconds
    for name, limit, step in steps:
        left = end - time.monotonic()
        if left < LEAST:
            keep(name, skipped(f"no time left of {seconds:.0f} s"))
            continue
        try:
            keep(name, step(min(limit, left), log))
        except Exception as error:  # what the other steps find is worth having
            print(f"{name}: {error!r}", flush=True)
            keep(name, {"passed": False, "error": repr(error)})


def machine(limit: float, log: Path) -> dict[str, Any]:
    """What nvidia-smi says of the GPU: its driver, clocks, power and whoever else uses it."""
    if shutil.which("nvidia-smi") is None:
        return skipped("nvidia-smi is not on the PATH")
    return run("machine", ["nvidia-smi", "-q"], limit, log)


def build(architecture: int, limit: float, log: Path) -> dict[str, Any]:
    """The fatbins that were carried, or those for a GPU of this compute capability (times ten)."""
    known = architecture in cuda_sources.ARCHITECTURES
    unfit = cuda_sources.unfit_files(architectures=[architecture] if known else [], ptx=not known)
    if not unfit:
        return {"passed": True, "carried": True}
    if not (os.environ.get("NVCC") or shutil.which("nvcc")):
        return {"passed": False, "error": f"{'; '.join(unfit)}, and there is no nvcc to make them anew"}
    only = ["--architectures", str(architecture)] if known else []
    return run("build", [sys.executable, "tools/cuda/build_cuda.py", *only, "--jobs", "2"], limit, log)


def pytest(name: str, limit: float, log: Path, chosen: str = "") -> dict[str, Any]:
    """The GPU tests, or some of them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    if chosen:
        command += ["-x", "-k", chosen]
    elif importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(4, os.cpu_count() or 1))]
    return run(name, command, limit, log)


def sanitize(check: str, limit: float, log: Path) -> dict[str, Any]:
    """GPU tests of small sizes under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return skipped("compute-sanitizer is not on the PATH")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *TESTS, "-k", SANITIZED]
    return run(check, [tool, "--tool", check, "--error-exitcode", "9", *tests], limit, log)


def profile(limit: float, log: Path) -> dict[str, Any]:
    """One launch of each kind of kernel under Nsight Compute."""
    tool = shutil.which("ncu")
    if tool is None:
        return skipped("ncu is not on the PATH")
    with tempfile.TemporaryDirectory(prefix="cir-ncu-") as folder:
        found = Path(folder) / "counts.csv"
        flags = ["--csv", "--log-file", str(found), "--metrics", ",".join(PROFILED)]
        kernels = ["--kernel-name", "regex:^(scan|few|many)_"]
        program = [sys.executable, "-m", "cir_bench.cuda_scoring", "launches"]
        step = run("profile", [tool, *flags, *kernels, *program], limit, log)
        lines = found.read_text(errors="replace").splitlines() if found.exists() else []
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    wanted = ("Kernel Name", "Grid Size", "Metric Name", "Metric Unit", "Metric Value")
    step["counts"] = [{key: row.get(key) for key in wanted} for row in rows]
    return step


class Record:
    """What a run has found: in its file from the first step on, and told at the end, however it ends.

    Args:
        path: of the file.
        head: what stands before the steps.
        gpu: the device.
    """

    def __init__(self, path: Path, head: dict[str, Any], gpu: Any) -> None:
        self.path = path
        self.result: dict[str, Any] = {**head, "steps": {}}
        self._gpu = gpu
        self._parts: dict[str, Any] = {}

    def keep(self, step: str, found: dict[str, Any]) -> None:
        """A step that has ended."""
        self.result["steps"][step] = found
        said = found.get("skipped") or found.get("error") or ("passed" if found["passed"] else "FAILED")
        print(f"-- {step}: {said}", flush=True)
        write(self.result, self.path)

    def part(
        self, name: str, limit: float, log: Path, benchmark: Sequence[str] = BENCHMARK
    ) -> dict[str, Any]:
        """A part of the benchmark in a child; what it has measured is kept even if it is stopped."""
        from cir_bench.cuda_scoring.parts import joined

        with tempfile.TemporaryDirectory(prefix="cir-part-") as folder:
            found = Path(folder) / "found.json"

            def look() -> None:
                if found.exists():
                    self._parts[name] = json.loads(found.read_text())
                    benchmark = joined(self._parts.values())
                    self.result["benchmark"] = {**benchmark, "model": predicted(self._gpu, benchmark)}
                    write(self.result, self.path)

            return run(name, [*benchmark, name, "--output", str(found)], limit, log, look)

    def close(self) -> int:
        """Say what was reached and what was not run; the exit code."""
        if self._parts:
            say_what_was_reached(self.result["benchmark"])
        print(f"wrote {self.path}", flush=True)
        steps = self.result["steps"]
        for step, found in steps.items():
            if found["passed"] is None:
                print(f"not run: {step}, {found['skipped']}")
        if any(found["passed"] is False for found in steps.values()):
            return 1
        return 3 if any(found["passed"] is None for found in steps.values()) else 0

    def perform(self, steps: Sequence[tuple[str, float, Step]], seconds: float, log: Path) -> int:
        """All steps as `perform` does them, also where Ctrl-C or SIGTERM ends the run; the exit code."""

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, stop)
        try:
            perform(steps, seconds, log, self.keep)
        except KeyboardInterrupt:
            done = self.result["steps"]
            begun, *rest = [name for name, _, _ in steps if name not in done]
            self.keep(begun, {"passed": False, "error": "the run was ended from outside"})
            for name in rest:
                self.keep(name, skipped("the run was ended from outside"))
        return self.close()


def the_check(record: Record, architecture: int) -> list[tuple[str, float, Step]]:
    """Name, most seconds and work of every step, in their order."""

    def of(name: str) -> Step:
        return partial(record.part, name)

    return [
        ("machine", 10, machine),
        ("build", 180, partial(build, architecture)),
        ("first", 40, partial(pytest, "first", chosen=FIRST)),
        ("single", 60, of("single")),
        ("small", 45, of("small")),
        ("batches", 60, of("batches")),
        ("profile", 60, profile),
        ("conformance", 120, partial(pytest, "conformance")),
        ("memcheck", 45, partial(sanitize, "memcheck")),
        ("rivals", 120, of("rivals")),
        ("racecheck", 120, partial(sanitize, "racecheck")),
    ]


def say_what_was_reached(found: dict[str, Any]) -> None:
    """Every target with its figure, and the predictions for other GPUs."""
    from cir_bench.cuda_scoring import reached

    for target, figure in reached(found):
        said = (
            "open"
            if figure is None
            else f"{figure:.3g}{target.unit}, {'met' if target.met(figure) else 'MISSED'}"
        )
        print(f"  {target.what} ({target.wanted}): {said}")
    for entry in found["model"]:
        print(
            f"  {entry['name']}, {entry['rows']:,} rows of {entry['dtype']}, {entry['queries']:,} queries: "
            f"{entry['predicted_ms']:.3g} ms predicted ({entry['bottleneck']}), "
            f"{entry['measured_ms']:.3g} ms measured"
        )
    for entry in found["predictions"]:
        print(
            f"  predicted, not measured: {entry['gpu']}, {entry['rows']:,} rows, one query: "
            f"{entry['scan_ms']:.2f} ms"
        )


def predicted(gpu: Any, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each measurement beside what the model of the machine says; nothing where it fails: facts go first."""
    try:
        like = gpu_model.gpu_like(gpu.name, gpu.architecture, gpu.multiprocessors)
        return gpu_model.beside(found, like)
    except Exception as error:
        print(f"no predictions: {error!r}", flush=True)
        return []


def engines(bundles: Path | None, output: Path, limit: float, log: Path) -> dict[str, Any]:
    """TensorRT plans, in a process of their own; skipped, and said so, where something is not installed."""
    needed = ["tensorrt", "onnxruntime", "tokenizers", "PIL"]
    for module in (*needed, *(("torch", "onnx", "onnxscript") if bundles is None else ())):
        if importlib.util.find_spec(module) is None:
            return skipped(f"{module} is not installed")
    found = output / "engines.json"
    check = [sys.executable, "-m", "cir_bench.engine_check", "--minutes", str(max(1.0, limit / 60 - 2))]
    check += [] if bundles is None else ["--bundles", str(bundles.resolve())]
    step = run("engines", [*check, "--output", str(found)], limit, log)
    if found.exists():
        step["found"] = json.loads(found.read_text())
        found.unlink()
    return step


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything together")
    parser.add_argument("--engines", action="store_true", help="TensorRT plans instead of all else")
    parser.add_argument("--bundles", type=Path, help="for the plans, where torch is not installed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result and its log")
    args = parser.parse_args()
    begun = time.monotonic()
    for module in ("pycuda", "pytest", "hypothesis"):
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"error: {module} is not installed here; see docs/gpu-check.md for how to carry it offline"
            )
    from cir_bench.cuda_scoring.parts import PARTS
    from cir_bench.machine import stamp
    from cir_infer.errors import CirError
    from cir_infer.gpu.context import open_gpu

    try:
        gpu = open_gpu()
    except CirError as error:
        sys.exit(f"error: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    kind = "gpu-engine-check" if args.engines else "gpu-check"
    head = {"kind": kind, **stamp(), "sources": cuda_sources.sources_hash()}
    head["recurrent_sources"] = cuda_sources.sources_hash(cuda_sources.RECURRENT)
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    path = unused(args.output, f"{name}-{'engines-' if args.engines else ''}{day}")
    log = path.with_suffix(".log")
    log.write_text("")
    record = Record(path, head, gpu)
    check = the_check(record, gpu.architecture)
    assert {step for step, _, _ in check} >= set(PARTS)
    if args.engines:
        check = [("engines", args.seconds, partial(engines, args.bundles, args.output))]
    return record.perform(check, args.seconds - (time.monotonic() - begun), log)


if __name__ == "__main__":
    sys.exit(main())
