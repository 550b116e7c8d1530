"""`make gpu-check` rehearsed: its own steps and record, the benchmark's parts small and on the emulated GPU.

python tests/tools/cuda/rehearsal.py FOLDER                             all steps
python tests/tools/cuda/rehearsal.py FOLDER --part NAME --output FILE   as `-m cir_bench.cuda_scoring NAME`

While FOLDER/hold is there a part stays at its first measurement, so whoever stops it need not be quick.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "evaluation")]

SMALL = 100


def measure(name: str, output: Path, hold: Path) -> int:
    from cir_bench.cuda_scoring.parts import PARTS, Sized, run_part
    from cir_bench.cuda_scoring.place import Place
    from tests.emulation.emulated import EmulatedDevice

    def clocked(launch: Any, stream: Any) -> float:
        begun = time.perf_counter()
        launch(stream)
        return (time.perf_counter() - begun) * 1e3

    def keep(found: dict[str, Any]) -> None:
        half = output.with_suffix(".part")
        half.write_text(json.dumps(found))
        half.replace(output)
        while found["cases"] and hold.exists():
            time.sleep(0.02)

    place = Place(EmulatedDevice(), "cpu", clocked, 1 << 12, gemm_side=16, crossover_rows=40, calls=2)
    small = [
        Sized(SMALL, min(item.queries, 3), item.dtypes) for item in PARTS[name] if isinstance(item, Sized)
    ]
    run_part(name, keep, place=place, part=small, samples=1)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.part:
        return measure(args.part, args.output, args.folder / "hold")
    from tests.emulation.emulated import EmulatedDevice
    from tools.cuda import gpu_check

    record = gpu_check.Record(args.folder / "result.json", {"kind": "rehearsal"}, EmulatedDevice())
    # The part's name is put behind the program, as it is behind the real one.
    program = (sys.executable, str(Path(__file__)), str(args.folder), "--part")

    def small(name: str, step: gpu_check.Step) -> gpu_check.Step:
        if name in ("single", "small", "batches", "rivals"):
            return lambda limit, log: record.part(name, limit, log, program)
        if name in ("build", "first", "conformance"):  # what they run takes minutes and is tested elsewhere
            return lambda limit, log: gpu_check.run(name, [sys.executable, "-c", ""], limit, log)
        return step

    steps = [(name, limit, small(name, step)) for name, limit, step in gpu_check.the_check(record, 75)]
    return record.perform(steps, 600, args.folder / "log")


if __name__ == "__main__":
    sys.exit(main())
