"""`python -m cir_bench.engine_check`: plans of the committed model and of seeded ResNets, on this GPU."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cir_bench.engine_check import steps
from cir_bench.engine_check.models import (
    MAIN,
    MODELS,
    bundle_path,
    precisions_of,
    trained_model,
    write_model,
)
from cir_bench.engine_check.placements import text_placements
from cir_bench.engine_check.reach import reached
from cir_bench.engine_check.subject import K, Subject, open_subject
from cir_bench.results import write_text
from cir_infer.errors import CirError
from cir_infer.gpu.driver import missing_gpu

CAPTURED_SECONDS, LATENCY_SECONDS, PLACEMENT_SECONDS = 2.0, 6.0, 2.0


class Check:
    """Runs steps until the time is up; one that fails is recorded, and the next one still runs."""

    def __init__(self, minutes: float, device: str, output: Path | None = None) -> None:
        self.device = device
        self._output = output
        self._end = time.monotonic() + 60 * minutes
        self.result: dict[str, Any] = {"bundles": {}, "skipped": []}

    @property
    def seconds_left(self) -> float:
        """Of the whole check."""
        return self._end - time.monotonic()

    def step(self, bundle: str, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """One step, recorded under its bundle and name."""
        if self.seconds_left <= 0:
            self.result["skipped"].append(f"{bundle}: {name}: out of time")
            return None
        try:
            found = act()
        except CirError as error:
            found = {"passed": False, "error": str(error)}
        except Exception as error:  # a fault of ours or of a library: the other steps are still worth having
            found = {"passed": False, "error": repr(error), "trace": traceback.format_exc()[-2000:]}
        self.result["bundles"].setdefault(bundle, {})[name] = found
        self.keep()
        shown = {key: value for key, value in found.items() if not isinstance(value, (dict, list))}
        print(f"  {bundle:<24} {name:<12} {json.dumps(shown)}", flush=True)
        return found

    def keep(self) -> None:
        """Write what is known so far; a reader never sees half of it."""
        if self._output is not None:
            write_text(self._output, json.dumps(self.result, indent=1, default=str) + "\n")

    def skip(self, what: str) -> None:
        """Name what cannot be checked here."""
        self.result["skipped"].append(what)
        print(f"  skipped: {what}", flush=True)


def check_subject(
    check: Check,
    name: str,
    subject: Subject,
    images: int,
    queries: int,
    others: dict[str, Callable[[], object]] | None = None,
) -> None:
    """All steps on one subject; of int8 those that depend on types."""
    every = subject.cpu.manifest.precision != "int8"
    backend = subject.searcher.engine.describe()["backend"]
    check.step(name, "plans", lambda: {"passed": True, **backend})
    check.step(name, "parity", lambda: steps.parity(subject, images))
    if check.device != "cpu":
        if every:
            check.step(name, "cache", lambda: steps.cache(subject, check.device))
        check.step(name, "captured", lambda: steps.captured(subject, CAPTURED_SECONDS))
        if every and subject.cpu.needs_text:
            check.step(name, "placements", lambda: text_placements(subject, PLACEMENT_SECONDS))
    if every:
        check.step(
            name, "threads", lambda: steps.threads(subject, queries, free_bytes=free_bytes(check.device))
        )
    check.step(name, "latency", lambda: steps.latency(subject, LATENCY_SECONDS, others))


def free_bytes(device: str) -> Callable[[], int] | None:
    """How to ask for the GPU memory that is free; None on the CPU."""
    if device == "cpu":
        return None
    from cir_infer.gpu.context import open_gpu

    gpu = open_gpu(0)

    def ask() -> int:
        with gpu.active():
            return gpu.free_bytes()

    return ask


def cold_start(subject: Subject, device: str) -> dict[str, Any]:
    """Fresh processes, from nothing to the first answer with plans that are in the cache."""
    from cir_bench.latency.cold_start import time_cold_start
    from cir_bench.latency.workload import Workload

    workload = Workload(subject.images[:1], subject.texts[:1], "the check's")
    found = time_cold_start(subject.searcher, workload, K, device, starts=3)
    return {"passed": True, "seconds": found["to_first_answer_ms"] / 1e3, **found}


def torch_others(trained: Any, subject: Subject) -> dict[str, Callable[[], object]]:
    """The PyTorch baselines that this machine has."""
    import torch

    from cir_bench.engine_check.baselines import torch_answer

    if not torch.cuda.is_available():
        return {}
    rows = subject.searcher.gallery.snapshot().rows.take(range(subject.searcher.gallery.snapshot().count))
    asked = (subject.searcher.engine.prepare, subject.images[0], str(subject.texts[0]), rows, K, "cuda")
    found: dict[str, Callable[[], object]] = {
        "torch eager float32": torch_answer(trained, *asked, False, False)
    }
    try:
        compiled = torch_answer(trained, *asked, True, True)
        compiled()
        found["torch compiled float16"] = compiled
    except Exception as error:  # torch.compile needs a compiler, and fails in many ways without one
        print(f"  skipped: torch.compile: {error!r}"[:300], flush=True)
    return found


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="cir_bench.engine_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the gallery of the largest model")
    parser.add_argument("--images", type=int, default=1000, help="for parity")
    parser.add_argument("--queries", type=int, default=10_000, help="from 8 threads")
    parser.add_argument("--only", choices=MODELS, help="one model")
    parser.add_argument("--device", default="tensorrt", choices=("tensorrt", "cpu"), help="cpu: a rehearsal")
    parser.add_argument("--bundles", type=Path, help="take bundles from this folder instead of exporting")
    parser.add_argument("--write-bundles", type=Path, metavar="FOLDER", help="write them there, and end")
    parser.add_argument("--output", type=Path, default=Path("engines.json"), help="JSON")
    args = parser.parse_args()
    models = (args.only,) if args.only else MODELS
    if args.write_bundles is not None:
        try:
            write_bundles(models, args.write_bundles)
        except CirError as error:
            sys.exit(f"error: {error}")
        return 0
    if args.device != "cpu" and (reason := missing_gpu()):
        sys.exit(f"error: {reason}; engines are checked on a machine with a GPU")
    check = Check(args.minutes, args.device, args.output)
    with tempfile.TemporaryDirectory(prefix="cir-engines-") as scratch:
        for model in models:
            check_model(check, model, Path(scratch), args)
    check.result["reach"] = reached(check.result)
    for target in check.result["reach"]:
        said = "open" if target["figure"] is None else f"{target['figure']:.4g}"
        print(f"  {target['target']}: {said}, met: {target['met']}")
    check.keep()
    found = [step for bundle in check.result["bundles"].values() for step in bundle.values()]
    return 0 if found and all(step["passed"] for step in found) else 1


def write_bundles(models: tuple[str, ...], folder: Path) -> None:
    """What a machine without torch needs for its check."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        write_model(trained_model(model), model, folder)


def check_model(check: Check, model: str, scratch: Path, args: argparse.Namespace) -> None:
    """One model in its precisions."""
    trained: Any = None
    folder = scratch if args.bundles is None else args.bundles
    try:
        if args.bundles is None:
            trained = trained_model(model)
            write_model(trained, model, folder)
    except (ImportError, CirError) as error:
        check.skip(f"{model}: it cannot be exported here ({error}); bring its bundles with --bundles")
    rows = args.rows if model == MAIN else min(args.rows, 15_000)
    exact: Subject | None = None
    for precision in precisions_of(model):
        name = f"{model}-{precision}"
        subject = opened(check, name, bundle_path(folder, model, precision), scratch, rows)
        if subject is None:
            continue
        asked = model == MAIN and precision == "float16" and trained is not None
        others = torch_others(trained, subject) if asked else {}
        check_subject(check, name, subject, args.images, args.queries, others)
        if precision == "float32":
            exact = subject
            continue
        # Random weights leave all pictures so near to each other that int8 says nothing of their order.
        if exact is not None and (precision == "float16" or model == "artemis-scenes"):
            check.step(name, "drift", partial(steps.drift, subject, exact, args.images))
        if precision == "float16":
            check.step(name, "cold_start", partial(cold_start, subject, check.device))


def opened(check: Check, name: str, path: Path, folder: Path, rows: int) -> Subject | None:
    """The bundle on its device, its plans built; None, and recorded, where that fails."""
    if not path.exists():
        check.skip(f"{name}: no bundle {path.name}")
        return None
    subjects: list[Subject] = []

    def act() -> dict[str, Any]:
        begun = time.monotonic()
        subjects.append(open_subject(path, folder, rows, check.device))
        return {"passed": True, "seconds": time.monotonic() - begun}

    check.step(name, "open", act)
    return subjects[0] if subjects else None


if __name__ == "__main__":
    sys.exit(main())
