"""From a fresh process to the first answer, in a process of its own each time.

The files are in the operating system's cache after the first start: this is the cold start of a
program, not of a device just switched on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.latency import first_answer
from cir_bench.latency.workload import Workload
from cir_infer.errors import DeviceError
from cir_infer.processes.children import child_command, child_environment
from cir_infer.searcher import Searcher

__all__ = ["STEPS", "time_cold_start"]

STEPS = {
    "interpreter": "start of Python, without this SDK",
    "libraries": "import NumPy",
    "imports": "import this SDK's part of a query",
    "open": "open bundle, device and gallery",
    "bundle": "open the bundle: import what runs graphs, its graphs, its tokenizer",
    "gallery": "open the gallery, make a scorer of it",
    "first": "the first answer",
    "second": "the second answer",
}
"""What a report calls each step, and what it holds. Older results have "open" for bundle and gallery, and
what runs graphs among the libraries."""


def time_cold_start(
    searcher: Searcher, workload: Workload, k: int, device: str, starts: int = 5
) -> dict[str, Any]:
    """Start `starts` processes; medians of each step in ms, and of their sum.

    Args:
        searcher: says which bundle and gallery, and what the system reads.
        workload: its first query is asked.
        k: hits a query.
        device: as for `Engine`.
        starts: processes to start.

    Raises:
        DeviceError: a process failed; its last line says why.
    """
    import time

    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "bundle": str(Path(searcher.engine.path).resolve()),
            "gallery": str(Path(searcher.gallery.path).resolve()),
            "device": device,
            "image": _as_file(workload, Path(folder)) if searcher.engine.needs_reference else None,
            "text": workload.texts[0] if searcher.engine.needs_text else None,
            "k": k,
        }
        runs: list[dict[str, float]] = []
        for _ in range(starts):
            before = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
            bare = time.perf_counter() - before
            done = subprocess.run(
                child_command(first_answer.__name__, json.dumps(arguments)),
                env=child_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise DeviceError(
                    f"a fresh process cannot answer: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
                )
            runs.append({"interpreter": bare, **json.loads(done.stdout.strip().splitlines()[-1])})
    steps = {name: 1e3 * float(np.median([run[name] for run in runs])) for name in STEPS if name in runs[0]}
    to_first = [sum(run[name] for name in steps if name != "second") for run in runs]
    return {
        "starts": starts,
        "steps_ms": steps,
        "to_first_answer_ms": 1e3 * float(np.median(to_first)),
        "to_first_answer_worst_ms": 1e3 * max(to_first),
    }


def _as_file(workload: Workload, folder: Path) -> str:
    """The first reference as a path, for a process that shares nothing with this one."""
    image = workload.images[0]
    if isinstance(image, bytes):
        path = folder / "reference.jpg"
        path.write_bytes(image)
        return str(path)
    if isinstance(image, np.ndarray):
        path = folder / "reference.npy"
        np.save(path, image)
        return str(path)
    return str(Path(str(image)).resolve())
