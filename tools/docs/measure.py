"""`make bench`: measures all of docs/performance.md on this machine, into benchmarks/results/, then the page.

Takes some 30 minutes on two quiet cores. Every line that starts with `$` is a command run as shown; single
ones can be run by name: `python tools/docs/measure.py latency accuracy`.
"""

from __future__ import annotations

import datetime
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cir_bench.latency.workload import photograph
from cir_bench.seeded_models import write_seeded_bundle
from cir_infer import Engine, Gallery
from cir_infer.machine.description import describe_machine

WORK = Path(".cache/measure")
RESULTS = Path("benchmarks/results")
MODEL = "models/artemis-scenes/model.pt"
ROWS = 15_000


def run(*command: str | Path, into: Path | None = None) -> None:
    """Run one of our commands from this environment, shown first; its output may go into a file."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}{f' > {into}' if into else ''}", flush=True)
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([program, *words[1:]], check=False, stdout=subprocess.PIPE if into else None)
    if done.returncode:
        raise SystemExit(f"measure: {words[0]} failed with exit code {done.returncode}")
    if into is not None:
        into.write_bytes(done.stdout)


def result(kind: str) -> Path:
    """Where a result of today on this machine goes."""
    machine = re.sub(r"[^a-z0-9]+", "-", str(describe_machine()["name"]).lower()).strip("-")
    return RESULTS / f"{kind}-{machine}-{datetime.date.today():%Y%m%d}.json"


def scenes() -> Path:
    """The scenes on which the committed model is evaluated."""
    data = WORK / "scenes"
    if not (data / "scenes.json").is_file():
        run("cir-bench", "scenes", data, "--gallery", "5000", "--views", "shaded", "--seed", "0")
    return data


def exported() -> Path:
    """The committed model's bundle."""
    bundle = WORK / "artemis-scenes.cir"
    if not bundle.is_file():
        run("cir-export", MODEL, "-o", bundle)
    return bundle


def seeded() -> Path:
    """ARTEMIS of the paper's size: ResNet-50, BiGRU, 224 pixels, random weights."""
    bundle = WORK / "artemis-resnet50.cir"
    return bundle if bundle.is_file() else write_seeded_bundle(bundle, text="bigru")


def fast_jpeg() -> Path:
    """The same, decoding JPEGs at a part of their size; compared on the workload's photographs."""
    bundle = WORK / "artemis-resnet50-fast-jpeg.cir"
    if not bundle.is_file():
        run("cir-export", seeded(), "--fast-jpeg", "--images", photographs(1000, 750, 8), "-o", bundle)
    return bundle


def photographs(width: int, height: int, count: int) -> Path:
    """JPEGs of one size."""
    folder = WORK / f"photographs-{width}x{height}"
    if not folder.is_dir():
        folder.mkdir()
        for seed in range(count):
            (folder / f"{seed}.jpg").write_bytes(photograph(width, height, seed))
    return folder


def gallery(bundle: Path) -> Path:
    """Rows of random directions; what they say changes no time."""
    path = bundle.with_suffix(f".{ROWS}.gallery")
    if not path.is_dir():
        engine = Engine(bundle, "cpu")
        rows = np.random.default_rng(0).standard_normal((ROWS, engine.dimension)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        Gallery.from_arrays(path, ids=[str(row) for row in range(ROWS)], vectors=rows, engine=engine).close()
    return path


def scoring() -> None:
    """Exact scorers: one query and 64 at once, FashionIQ's shirts, and every instruction set."""
    for name, rows, queries, rounds in (
        ("400k-1", 400_000, 1, 21),
        ("1m-1", 1_000_000, 1, 15),
        ("400k-64", 400_000, 64, 7),
        ("1m-64", 1_000_000, 64, 4),
        ("6346-4076", 6_346, 4_076, 5),
    ):
        _scoring(name, rows, queries, rounds)
    _scoring("sets-200k-1", 200_000, 1, 9, "--every-instruction-set")
    _scoring("sets-50k-64", 50_000, 64, 7, "--every-instruction-set")


def linearised() -> None:
    """The linearised first stage over an HNSW graph of a million rows, which takes 12 minutes to build."""
    _scoring("1m-linearised", 1_000_000, 1, 9, "--linearised", "usearch", "--dtype", "float32")


def _scoring(name: str, rows: int, queries: int, rounds: int, *more: str) -> None:
    size = ("--rows", str(rows), "--queries", str(queries), "--rounds", str(rounds))
    run("cir-bench", "scoring", *size, "--json", *more, into=result(f"scoring-{name}"))


def latency() -> None:
    """The committed model, then the paper's size: photographs, the same scaled, a catalogue's pictures."""
    _latency("latency-scenes", exported(), "--images", scenes() / "test" / "shaded")
    _latency("latency-resnet50", seeded(), "--seconds", "40")
    _latency("latency-resnet50-fast-jpeg", fast_jpeg(), "--seconds", "40")
    _latency("latency-resnet50-catalogue", seeded(), "--seconds", "40", "--images", photographs(400, 533, 64))


def _latency(name: str, bundle: Path, *more: str | Path) -> None:
    device = ("--device", "cpu")
    run("cir-bench", "latency", bundle, gallery(bundle), *device, *more, "--output", result(name))


def compare() -> None:
    """Against PyTorch, torch.compile and ONNX Runtime alone."""
    run("cir-bench", "compare", MODEL, "--rows", str(ROWS), "--output", result("compare-scenes"))
    run(
        "cir-bench",
        "compare",
        "--seeded",
        "resnet50",
        "--rows",
        str(ROWS),
        "--output",
        result("compare-resnet50"),
    )


def table7() -> None:
    """The paper's efficiency table."""
    run("cir-bench", "table7", "--work", WORK / "table7", "--output", result("table7"))


def accuracy() -> None:
    """The committed model on the held-out compositions."""
    for row_type in ("float32", "int8"):
        run(
            "cir-bench", "accuracy", exported(), scenes(), "--protocol", "scenes/shaded",
            "--row-type", row_type, "--resume", WORK / "embeddings",
            "--output", result(f"accuracy-scenes-{row_type}"),
        )  # fmt: skip


def report() -> None:
    """The tables of docs/performance.md, and a page with plots."""
    found = sorted(RESULTS.glob("*.json"))
    run("cir-bench", "report", *found, "--tables", "docs/performance.md", "--output", WORK / "report.html")


STEPS: dict[str, Callable[[], None]] = {
    "scoring": scoring,
    "linearised": linearised,
    "latency": latency,
    "compare": compare,
    "table7": table7,
    "accuracy": accuracy,
    "report": report,
}


def main() -> None:
    """Run the steps that were named, or all."""
    names = sys.argv[1:] or list(STEPS)
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise SystemExit(f"measure: no step {unknown[0]!r}; expected some of {', '.join(STEPS)}")
    WORK.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        STEPS[name]()


if __name__ == "__main__":
    main()
