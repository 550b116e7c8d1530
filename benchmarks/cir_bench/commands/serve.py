"""`cir-bench serve`: what HTTP adds to a query, and what a service does at its limit and beyond."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from cir_bench.machine import stamp
from cir_infer.console.common import print_json
from cir_infer.console.progress import tell
from cir_infer.console.tables import format_table
from cir_infer.errors import UsageError
from cir_infer.extras import modules_of, require
from cir_infer.processes.cpus import available_cpus

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench serve artemis.cir shop.gallery --rows 15000 --model model.pt --clients 1 16 256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the exported model (.cir)")
    parser.add_argument("gallery", metavar="GALLERY", help="the gallery; it is not changed")
    parser.add_argument(
        "--model", metavar="FILE", help="the model.pt of the bundle: compare with a plain handler"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="references (default: the gallery's)")
    parser.add_argument("--rows", type=int, metavar="N", help="measure over a gallery of so many rows")
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=[1, 4, 16, 64, 256],
        metavar="N",
        help="default 1 4 16 64 256",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (default 10)")
    parser.add_argument("--rounds", type=int, default=200, help="queries for the overhead (default 200)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engine (default: all processors)")


def run(args: argparse.Namespace) -> int:
    """Measure, print."""
    require("cir-bench serve", *modules_of("serve"))
    if args.model is not None:
        require("the comparison with PyTorch", "torch")
    from cir_bench.serving.measurement import enlarged, measure_serving

    if args.seconds <= 0 or args.rounds < 5 or min(args.clients) < 1:
        raise UsageError("--seconds must be positive, --clients at least 1, --rounds at least 5")
    report: dict[str, Any] = {"kind": "serving", **stamp(), "bundle": args.bundle}
    with tempfile.TemporaryDirectory() as scratch:
        gallery = args.gallery
        if args.rows is not None:
            gallery = enlarged(gallery, Path(scratch) / "rows.gallery", args.rows)
        report["rows"] = args.rows
        report |= measure_serving(
            args.bundle,
            gallery,
            args.model,
            args.threads or available_cpus(),
            args.clients,
            args.seconds,
            args.rounds,
            tell,
            args.images,
        )
    if args.json:
        print_json(report)
    else:
        print(_table(report))
    return 0


def _table(report: dict[str, Any]) -> str:
    loads = [
        [title, name, count, *_cells(part)]
        for title in ("batched", "one batch at a time", "workers", "one by one", "minimal", "bare HTTP")
        for name, parts in report.get(title, {}).items()
        for count, part in parts.items()
    ]
    loads += [
        [title, name, "512", *_cells(parts[title])]
        for name, parts in report["overload"].items()
        for title in ("at capacity", "at four times capacity")
    ]
    loads += [
        ["query_batch", name, "", f"{part['per_second']:,.1f}", f"{part['cpu_ms']:.2f}", *[""] * 6]
        for name, part in report["query_batch"].items()
    ]
    header = (
        *("service", "query", "clients", "answered/s", "cpu ms", "asking", "p50 ms", "p95 ms", "p99 ms"),
        *("refused", "failed"),
    )
    reach = [
        [name, figure, f"{value:.3f}"]
        for name, part in report["reach"].items()
        for figure, value in part.items()
    ]
    return "\n\n".join(
        (
            format_table(header, loads, right=range(2, 11)),
            format_table(("query", "figure", "value"), reach, right=(2,)),
        )
    )


def _cells(part: dict[str, Any]) -> list[str]:
    latency = part["latency"] or {}
    return [
        f"{part['answered_per_second']:,.1f}",
        *(f"{part[name]:.2f}" if part[name] else "" for name in ("cpu_ms_an_answer", "cpu_ms_of_asking")),
        *(f"{latency[name]:,.1f}" if latency else "" for name in ("p50_ms", "p95_ms", "p99_ms")),
        str(part["refused"]),
        str(part["failed"]),
    ]
