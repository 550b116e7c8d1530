#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one offline run: `make gpu-check`. See docs/gpu-check.md.

Builds the kernels where nvcc is there, runs the conformance suite on the GPU, then compute-sanitizer, then
the benchmark, and writes benchmarks/results/<gpu>-<date>.json. A step that fails is recorded and the next
one still runs; the exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tools")]

import build_cuda  # noqa: E402

TESTS = ("tests/scoring/test_cuda_gpu.py", "tests/gpu/test_recurrent_kernel.py")
SANITIZED = "random_rows or duplicates or overflow or streamed or small_layers"
QUICK = ((15_000, 1), (1_000_000, 1), (1_000_000, 64), (100_000, 1024))


def run(name: str, command: list[str], limit: float, log: Path) -> dict[str, Any]:
    """One step as a process of its own, its output in a log and its end on the terminal."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    begun = time.monotonic()
    ours = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "export")]
    paths = os.pathsep.join([*ours, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "ORT_DISABLE_TELEMETRY": "1"}
    with log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"== {name}\n")
        file.flush()
        start = file.tell()
        # Into the log as it comes, so that a run that is cut short tells how far it was.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            # A child of the child that lives on would keep the GPU busy beside what is measured next.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
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


def write(result: dict[str, Any], path: Path) -> None:
    """What is known so far; a reader never sees half of it."""
    half = path.with_name(f".{path.name}.part")
    half.write_text(json.dumps(result, indent=1) + "\n")
    half.replace(path)


def build(architecture: int, limit: float, log: Path) -> dict[str, Any]:
    """The fatbin for a GPU of this compute capability (times ten), or the one that is already there."""
    if os.environ.get("NVCC") or shutil.which("nvcc"):
        only = ["--architectures", str(architecture)] if architecture in build_cuda.ARCHITECTURES else []
        return run("build", [sys.executable, "tools/build_cuda.py", *only, "--jobs", "2"], limit, log)
    missing = [kernels.fatbin.name for kernels in build_cuda.SETS.values() if not kernels.fatbin.exists()]
    if missing:
        return {"passed": False, "error": f"no nvcc, and no {' and no '.join(missing)} either"}
    return skipped("no nvcc; fatbins are there")


def sanitize(limit: float, log: Path) -> dict[str, Any]:
    """The GPU tests of small sizes under compute-sanitizer's memcheck and racecheck."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return skipped("compute-sanitizer is not on the PATH")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *TESTS, "-k", SANITIZED]
    return {
        check: run(check, [tool, "--tool", check, "--error-exitcode", "9", *tests], limit / 2, log)
        for check in ("memcheck", "racecheck")
    }


def benchmark(sizes: tuple[tuple[int, int], ...], limit: float) -> dict[str, Any]:
    """Every size until the time is up; what was left out is named."""
    from cir_bench.cuda_scoring import reached, sweep

    out = sweep(sizes, seconds=limit, progress=lambda line: print(f"  {line}", flush=True))
    for target, figure in reached(out):
        said = (
            "open"
            if figure is None
            else f"{figure:.3g}{target.unit}, {'met' if target.met(figure) else 'MISSED'}"
        )
        print(f"  {target.what} ({target.wanted}): {said}")
    for entry in out["predictions"]:
        print(
            f"  predicted, not measured: {entry['gpu']}, {entry['rows']:,} rows, one query: "
            f"{entry['scan_ms']:.2f} ms"
        )
    return out


def engines(minutes: float, bundles: Path | None, output: Path, log: Path) -> dict[str, Any]:
    """TensorRT plans, in a process of their own; skipped, and said so, where something is not installed."""
    needed = ["tensorrt", "onnxruntime", "tokenizers", "PIL"]
    for module in (*needed, *(("torch", "onnx", "onnxscript") if bundles is None else ())):
        if importlib.util.find_spec(module) is None:
            print(f"== engines: skipped, {module} is not installed", flush=True)
            return skipped(f"{module} is not installed")
    found = output / "engines.json"
    check = [sys.executable, "-m", "cir_bench.engine_check", "--minutes", str(minutes)]
    check += [] if bundles is None else ["--bundles", str(bundles.resolve())]
    step = run("engines", [*check, "--output", str(found)], 60 * minutes + 300, log)
    if found.exists():
        step["found"] = json.loads(found.read_text())
        found.unlink()
    return step


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--full", action="store_true", help="all sizes of the benchmark instead of four")
    parser.add_argument("--engine-minutes", type=float, default=9.0, help="for TensorRT plans, besides")
    parser.add_argument("--bundles", type=Path, help="for the plans, where torch is not installed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result and its log")
    args = parser.parse_args()
    for module in ("pycuda", "pytest", "hypothesis"):
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"error: {module} is not installed here; see docs/gpu-check.md for how to carry it offline"
            )
    from cir_bench.cuda_scoring import SIZES
    from cir_bench.machine import stamp
    from cir_infer.errors import CirError
    from cir_infer.gpu.context import open_device, open_gpu

    try:
        architecture = open_gpu().architecture
    except CirError as error:
        sys.exit(f"error: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    total = 60 * args.minutes
    log = args.output / "gpu-check.log"
    log.write_text("")
    result: dict[str, Any] = {"kind": "gpu-check", **stamp(), "sources": build_cuda.sources_hash()}
    result["recurrent_sources"] = build_cuda.sources_hash(build_cuda.RECURRENT)
    try:
        gpu = open_gpu().name
    except CirError as error:
        sys.exit(f"error: {error}")
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    path = args.output / f"{name}-{day}.json"

    def keep(step: str, found: dict[str, Any]) -> None:
        result[step] = found
        write(result, path)

    keep("build", build(architecture, 0.3 * total, log))
    try:
        open_device()
    except CirError as error:
        sys.exit(f"error: {error}")
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    keep("conformance", run("conformance", pytest, 0.25 * total, log))
    keep("sanitizer", sanitize(0.3 * total, log))
    try:
        keep("benchmark", benchmark(SIZES if args.full else QUICK, 0.35 * total))
    except Exception as error:  # what the steps before have found is kept
        print(f"the benchmark failed: {error!r}", flush=True)
        keep("benchmark", {"cases": [], "error": repr(error)})
    keep("engines", engines(args.engine_minutes, args.bundles, args.output, log))
    print(f"wrote {path}")
    steps = [result["build"], result["conformance"], *_leaves(result["sanitizer"]), result["engines"]]
    for step in steps:
        if step["passed"] is None:
            print(f"not run: {step['skipped']}")
    wrong = [
        e for case in result["benchmark"]["cases"] for e in case["results"] if "wrong" in e.get("skipped", "")
    ]
    failed = "error" in result["benchmark"] or any(step["passed"] is False for step in steps)
    sys.exit(1 if failed or wrong else 0)


def _leaves(step: dict[str, Any]) -> list[dict[str, Any]]:
    return [step] if "passed" in step else list(step.values())


if __name__ == "__main__":
    main()
