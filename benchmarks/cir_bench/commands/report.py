"""`cir-bench report`: results over machines and commits as a page, and the tables of docs/performance.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from cir_infer.console.common import print_json
from cir_infer.errors import UsageError

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = """cir-bench report benchmarks/results/*.json --output report.html
  cir-bench report benchmarks/results/*.json --tables docs/performance.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("results", metavar="JSON", type=Path, nargs="+", help="what cir-bench wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="HTML", help="write the page here")
    parser.add_argument("--title", default="cir-infer: measured", help="heads the page")
    parser.add_argument(
        "--tables", type=Path, metavar="FILE", help="write the sections of figures of this page"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --tables: write nothing, fail if a section is out of date",
    )


def run(args: argparse.Namespace) -> int:
    """Write what was asked for and print the regressions; 1 where --check finds a difference."""
    from cir_bench.report.page import report_page
    from cir_bench.report.regressions import group_key, regressions
    from cir_bench.report.tables import (
        GPU_BEGIN,
        GPU_END,
        gpu_section,
        performance_section,
        read_page,
        replace_section,
    )
    from cir_bench.results import ensure_writable, gpu_checks, read_as, read_results, write_text

    if args.check and args.tables is None:
        raise UsageError("--check needs --tables")
    ensure_writable(args.output, args.results)
    results = read_results(args.results)
    for name, result in results.items():  # each alone, so that the one that cannot be shown is named
        with read_as(name, result["kind"]):
            report_page([result], name)
            regressions([result])
            group_key(result)
    written: list[Path] = []
    if args.output is not None:
        write_text(args.output, report_page(list(results.values()), args.title))
        written.append(args.output)
    stale = False
    if args.tables is not None:
        before = read_page(args.tables)
        text = replace_section(before, performance_section(results))
        if GPU_BEGIN in text:
            text = replace_section(text, gpu_section(gpu_checks(args.results)), GPU_BEGIN, GPU_END)
        if args.check:
            stale = text != before
        else:
            write_text(args.tables, text)
            written.append(args.tables)
    worse = regressions(list(results.values()))
    if args.json:
        print_json(
            {
                "results": {name: group_key(result) for name, result in results.items()},
                "written": written,
                "tables_are_current": None if not args.check else not stale,
                "regressions": [vars(change) for change in worse],
            }
        )
    else:
        for name, result in results.items():
            print(f"{name}: {group_key(result)}")
        for change in worse:
            print(f"regression: {change}")
        for path in written:
            print(f"wrote {path}")
        if stale:
            print(f"{args.tables}: out of date; run the same command without --check")
    return 1 if stale else 0
