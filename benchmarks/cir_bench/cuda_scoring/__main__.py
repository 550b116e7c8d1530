"""A part of the GPU benchmark, in a process of its own: `python -m cir_bench.cuda_scoring PART`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cir_bench.cuda_scoring.parts import PARTS, launch_each_once, run_part
from cir_bench.results import write_text
from cir_infer.errors import CirError


def main() -> int:
    """Measure, writing all that is known anew after each measurement; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "launches"), help="launches: one of each kind, to profile")
    parser.add_argument("--output", type=Path, help="JSON")
    args = parser.parse_args()

    def keep(found: dict[str, Any]) -> None:
        if args.output is not None:
            write_text(args.output, json.dumps(found))

    try:
        if args.part == "launches":
            launch_each_once()
            return 0
        found = run_part(args.part, keep, progress=lambda line: print(f"  {line}", flush=True))
    except CirError as error:
        sys.exit(f"error: {error}")
    results = [entry for case in found["cases"] for entry in case["results"]]
    return 1 if any("wrong" in entry.get("skipped", "") for entry in results) else 0


if __name__ == "__main__":
    sys.exit(main())
