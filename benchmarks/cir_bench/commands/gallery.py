"""`cir-bench gallery`: what the store costs: opening, filters, compaction beside queries, indexing."""

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
from cir_infer.processes.cpus import available_cpus

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench gallery --rows 1000000 --bundle artemis.cir --images photos/ --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    for flag, value, what in (
        ("--rows", 1_000_000, "items of the gallery; 0 leaves this part out"),
        ("--dim", 512, "values a row"),
        ("--rounds", 9, "how often each figure is taken"),
        ("--batch-size", 32, "images encoded together"),
    ):
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{what} (default {value})")
    parser.add_argument("--bundle", help="measure indexing too, with the encoder of this bundle")
    parser.add_argument("--images", metavar="SOURCE", help="what is indexed, as cir-index takes it")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: spare cores)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where to build it (default: temporary)")


def run(args: argparse.Namespace) -> int:
    """Measure, print."""
    from cir_bench.galleries import measure_indexing, measure_store
    from cir_infer.engine import Engine

    if args.rows < 0 or args.dim < 1 or args.rounds < 1 or args.batch_size < 1:
        raise UsageError("--rows must be at least 0; --dim, --rounds and --batch-size at least 1")
    if (args.bundle is None) != (args.images is None):
        raise UsageError("--bundle and --images belong together")
    workers = args.workers if args.workers is not None else max(1, min(8, available_cpus() - 1))
    report = stamp()
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        if args.rows:
            report["store"] = measure_store(Path(scratch), args.rows, args.dim, args.rounds, tell)
        if args.bundle:
            report["indexing"] = measure_indexing(
                Path(scratch), Engine(args.bundle), args.images, args.rounds, workers, args.batch_size, tell
            )
    if args.json:
        print_json(report)
    else:
        print(format_table(("figure", "value"), list(_lines("", report)), right=(1,)))
    return 0


def _lines(prefix: str, value: Any) -> list[tuple[str, str]]:
    """The measured values as rows of a table; not what heads every report."""
    if not prefix:
        parts = {name: value[name] for name in ("store", "indexing") if name in value}
        return [line for name, part in parts.items() for line in _lines(name, part)]
    if isinstance(value, dict):
        return [line for name, part in value.items() for line in _lines(f"{prefix} {name}", part)]
    return [(prefix, f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")]
