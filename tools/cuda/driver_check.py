#!/usr/bin/env python3
"""What talks to the CUDA driver, on an emulated one: `make driver-check`. Needs PyCUDA and no GPU.

The emulation of the kernels (tests/emulation) with a libcuda.so.1 in front: PyCUDA and our own code run on it
as they are, through contexts, streams, captures, page-locked memory and threads, for several GPUs and with
their work done as late, as early and as much at random as CUDA allows. Nothing here says how fast it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.cuda import cuda_sources  # noqa: E402

SCORER, ENCODER = "tests/scoring/test_cuda_gpu.py", "tests/gpu"
CHAIN, ENDINGS = "tests/emulation/driver/test_tensorrt_chain.py", "tests/emulation/driver/test_endings.py"
TIMES = "tests/emulation/driver/test_times.py"
ENGINE_CHECK = "tests/emulation/driver/test_engine_check.py"
PLUGINS = ("-p", "tests.emulation.driver.shrink", "-p", "tests.emulation.driver.counting")
_TENSORRT = "tests/runtime/tensorrt"
_ENGINE, _CHECK = f"{_TENSORRT}/test_engine.py", f"{_TENSORRT}/test_engine_check.py"
_TEXT = f"{_TENSORRT}/test_text_placement.py"
_ONLY_EMULATED = (
    # They look into the emulated device, or want a machine without a driver.
    f"{_ENGINE}::test_a_replay_that_answers_otherwise_is_not_used",
    f"{_ENGINE}::test_the_tensorrt_provider_of_onnx_runtime_is_refused_where_it_is_missing",
    f"{_CHECK}::test_the_whole_check_with_bundles_that_were_brought",
    f"{_TEXT}::test_a_kernel_that_is_not_what_was_measured_is_measured_again",
    f"{_TEXT}::test_the_process_that_tries_the_kernel_answers",
)
ENGINES = (_ENGINE, _CHECK, _TEXT, *(f"--deselect={test}" for test in _ONLY_EMULATED))


class Step(NamedTuple):
    """Tests on one machine."""

    name: str
    tests: tuple[str, ...]
    every: int = 1
    """Cases of a test that count as one."""
    settings: tuple[tuple[str, str], ...] = ()
    """See gpu.h."""


def steps(every: int) -> list[Step]:
    """All there is to run; of tests with many parameters every so-many-th case."""
    return [
        Step("calls and refusals", ("tests/emulation/driver/test_driver.py",)),
        Step("planted mistakes", ("tests/emulation/driver/test_planted.py",)),
        Step("endings", (ENDINGS,)),
        Step("times", (TIMES,)),
        Step("the check of engines", (ENGINE_CHECK,)),
        *(
            Step(f"queries as graphs, order {order}", (CHAIN,), settings=(("order", order),))
            for order in ("late", "early", "0", "1", "2")
        ),
        *(
            Step(f"TensorRT's tests, order {order}", ENGINES, settings=(("order", order),))
            for order in ("late", "early", "0")
        ),
        Step("a T4", (SCORER, ENCODER), every, (("gpu", "sm_75"), ("order", "0"))),
        Step("an Orin", (SCORER, ENCODER), every + 1, (("gpu", "sm_87"), ("order", "early"))),
        Step("an H200", (SCORER, ENCODER), every + 3, (("gpu", "sm_90"), ("order", "late"))),
        Step("many multiprocessors", (ENCODER,), settings=(("gpu", "sm_90"), ("multiprocessors", "32"))),
    ]


def run(step: Step, folder: Path) -> bool:
    """One step in a process of its own; whether it passed and the driver had nothing to say."""
    from tests.emulation.driver.building import build_driver, environment

    report = folder / "report"
    report.write_text("")
    variables = environment(build_driver(), **dict(step.settings), report=str(report))
    ours = [str(ROOT / part) for part in ("evaluation", "export", "benchmarks")]
    paths = [variables["PYTHONPATH"], *ours]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    variables["CIR_SHRINK_EVERY"] = str(step.every)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        *PLUGINS,
        *step.tests,
    ]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    lines = [*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()]
    said = [line for line in report.read_text().splitlines() if line.startswith("complaint")]
    counted = re.findall(r"\d+ (?:passed|failed|skipped|errors?|warnings?)", done.stdout)
    passed = done.returncode == 0 and not said and any("passed" in count for count in counted)
    seconds = time.monotonic() - begun
    print(
        f"{'passed' if passed else 'FAILED'}  {step.name}: {', '.join(counted)} ({seconds:.0f} s)", flush=True
    )
    if not passed:
        print("\n".join([*lines[-80:], *said[:20]]), flush=True)
    return passed


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=12, help="of many cases of a test one in so many (12)")
    parser.add_argument("--only", default="", help="steps whose name contains this")
    args = parser.parse_args()
    if importlib.util.find_spec("pycuda") is None:
        sys.exit(
            "error: PyCUDA is not installed here; docs/gpu-check.md says how to build its wheel without "
            "a GPU, to be installed, or unpacked into a folder on PYTHONPATH"
        )
    unfit = cuda_sources.unfit_files()
    if unfit:
        sys.exit(f"error: the driver reads the fatbins, and {'; '.join(unfit)}; {cuda_sources.REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [step for step in steps(args.every) if args.only in step.name]
        failed = sum([not run(step, Path(folder)) for step in chosen])
    sys.exit(1 if failed or not chosen else 0)


if __name__ == "__main__":
    main()
