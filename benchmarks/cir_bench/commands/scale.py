"""`cir-bench scale`: what shards cost, measured; how many machines more rows would need, simulated."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.commands.numbers import at_least_one, positive
from cir_bench.machine import stamp
from cir_infer.console.common import print_json
from cir_infer.console.progress import tell
from cir_infer.console.tables import format_table
from cir_infer.errors import UsageError, shown

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench scale --rows 200000 --shards 2 4 8 --node server:300:512:4.5 --json"
_PLANNED = (10_000_000, 100_000_000, 1_000_000_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    for flag, value, what in (
        ("--rows", 200_000, "items over all shards, float16"),
        ("--dim", 512, "values a row"),
        ("--queries", 200, "that are timed"),
    ):
        parser.add_argument(
            flag, type=at_least_one, default=value, metavar="N", help=f"{what} (default {value})"
        )
    parser.add_argument(
        "-k", "--k", type=at_least_one, default=50, metavar="N", help="hits of each (default 50)"
    )
    parser.add_argument(
        "--shards", type=at_least_one, nargs="+", default=[2, 4, 8], metavar="N", help="default 2 4 8"
    )
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="NAME:GB/S:GB[:PRICE]",
        help="a machine to plan with: its measured scan rate, its memory, its price an hour (repeatable); "
        "this machine is planned with anyway",
    )
    parser.add_argument(
        "--network",
        type=positive,
        nargs=2,
        default=[0.3, 2.0],
        metavar=("MEDIAN", "P99"),
        help="there and back between machines, ms; assumed, not measured (default 0.3 2)",
    )
    parser.add_argument(
        "--scan", type=positive, default=0.1, metavar="SECONDS", help="a scan may take (default 0.1)"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where to build it (default: temporary)")


def run(args: argparse.Namespace) -> int:
    """Measure, simulate, print."""
    from cir_bench.scaling.measuring import measure
    from cir_bench.scaling.simulation import Network, Node, checked_against, plan

    nodes = [Node(*_node(text)) for text in args.node]
    network = Network(*args.network)
    if network.p99 < network.median:
        raise UsageError(
            f"--network: the 99th percentile {network.p99:g} is below the median {network.median:g}"
        )
    if max(args.shards) > args.rows:
        raise UsageError(f"--shards {max(args.shards)} of {args.rows:,} rows; expected a row for each")
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        one, several = measure(Path(scratch), args.rows, args.dim, args.shards, args.queries, args.k, tell)
    rate = args.rows * args.dim * 2 / 1e6 / float(np.median(one.total))
    here = Node("this machine", rate, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    report = {
        **stamp(),
        "rows": args.rows,
        "dimension": args.dim,
        "equal_answers": args.queries * len(several),
        "scan_gigabytes_a_second": rate,
        "one_gallery": one.told(),
        "shards": [measured.told() for measured in several],
        "simulation": [checked_against(measured) for measured in several],
        "network_ms": {"median": network.median, "p99": network.p99},
        "plans": [
            plan(rows, dtype, args.dim, node, args.scan, several[0], network)
            for rows in _PLANNED
            for dtype in ("float16", "int8")
            for node in (here, *nodes)
        ],
    }
    if args.json:
        print_json(report)
    else:
        _show(report)
    return 0


def _node(text: str) -> tuple[Any, ...]:
    name, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if not name or len(values) not in (2, 3) or not all(0 < value < float("inf") for value in values):
        raise UsageError(f"--node {shown(text)}; expected NAME:GB/S:GB[:PRICE], such as server:300:512:4.5")
    return (name, *values)


def _show(report: dict[str, Any]) -> None:
    rows = [
        [
            str(part["shards"]),
            *(
                f"{part[name][f'p{q}_ms']:.2f}"
                for name in ("total", "slowest_shard", "coordination")
                for q in (50, 99)
            ),
            f"{simulated['p50']['ratio']:.2f}",
            f"{simulated['p99']['ratio']:.2f}",
        ]
        for part, simulated in zip(report["shards"], report["simulation"], strict=True)
    ]
    names = ("total", "slowest shard", "coordination", "simulated over measured")
    header = ["shards", *(f"{name} p{q}" for name in names for q in (50, 99))]
    print(format_table(header, rows, right=range(len(header))))
    print(f"one gallery: p50 {report['one_gallery']['total']['p50_ms']:.2f} ms; times in ms\n")
    rows = [
        [
            f"{one['rows']:,}",
            *(
                one["dtype"],
                one["node"],
                f"{one['gigabytes']:,.0f}",
                f"{one['nodes']:,}",
                f"{one['scan_ms']:.0f}",
            ),
            *(f"{one[f'replicas_{n}'][f'p{q}_ms']:.0f}" for n in (1, 2) for q in (50, 99)),
        ]
        for one in report["plans"]
    ]
    header = ["rows", "type", "node", "GB", "nodes", "scan", "p50", "p99", "two replicas p50", "p99"]
    print(format_table(header, rows, right=(0, *range(3, len(header)))))
