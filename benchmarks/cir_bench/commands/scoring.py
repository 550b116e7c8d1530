"""`cir-bench scoring`: exact scorers against the read roofline and against what else one could do."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cir_bench.machine import stamp
from cir_infer.commands.common import print_json
from cir_infer.errors import UsageError
from cir_infer.scoring.cpu import kernels_hash

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench scoring --rows 400000 --queries 1 --k 50 --json"
DTYPES = ("float32", "float16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    for flag, value, what in (
        ("--rows", 400_000, "gallery rows"),
        ("--dim", 512, "values a row"),
        ("--queries", 1, "queries that are asked at once"),
        ("--k", 50, "results a query"),
        ("--rounds", 15, "how often each entry is timed, in turn with the others"),
        ("--seed", 0, "rows and queries are drawn from it"),
    ):
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{what} (default {value})")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: every usable core)")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=list(DTYPES),
        help="types of rows for our kernels (default: all)",
    )
    parser.add_argument(
        "--linearised",
        choices=("usearch", "faiss"),
        help="time the linearised first stage with this library's HNSW graph, over rows that have neighbours",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to score (default cpu)"
    )


def run(args: argparse.Namespace) -> int:
    """Verify, time, print."""
    for name in ("rows", "dim", "queries", "k", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}; expected 1 or more")
    if args.k > args.rows:
        raise UsageError(f"--k {args.k} of {args.rows} rows; expected no more than the rows")
    results = _on_cuda(args) if args.device == "cuda" else _on_cpu(args)
    report = {
        **stamp(),
        **({"kernels_sha256": kernels_hash()} if args.device == "cpu" else {}),
        "rows": args.rows,
        "dim": args.dim,
        "queries": args.queries,
        "k": args.k,
        "results": results,
    }
    if args.json:
        print_json(report)
    else:
        _print_table(report)
    return 0


def _on_cpu(args: argparse.Namespace) -> list[dict[str, Any]]:
    from cir_bench.scoring.measurement import measure
    from cir_bench.scoring.workload import Workload, artemis_terms, latent_rows, unit_rows
    from cir_infer.scoring.cpu import usable_cores

    def progress(what: str) -> None:
        if sys.stderr.isatty():
            print(f"{what} ...", file=sys.stderr)

    if args.linearised:
        values = latent_rows(args.rows, args.dim, args.seed)
        terms = artemis_terms(args.queries, args.dim, args.seed + 1, near=values)
    else:
        values = unit_rows(args.rows, args.dim, args.seed)
        terms = artemis_terms(args.queries, args.dim, args.seed + 1)
    work = Workload(values, terms, args.k, args.threads or usable_cores())
    return measure(work, tuple(args.dtype), args.rounds, progress, args.linearised)


def _on_cuda(args: argparse.Namespace) -> list[dict[str, Any]]:
    from cir_bench.cuda_scoring import Case, measure

    case = Case(args.rows, args.dim, args.queries, args.k, args.rounds)
    return measure(case, tuple(args.dtype))


def _print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']['name']}, commit {report['commit']}")
    print(
        f"{report['rows']:,} x {report['dim']} rows, {report['queries']:,} "
        f"{'query' if report['queries'] == 1 else 'queries'}, k = {report['k']}"
    )
    timed = [r for r in report["results"] if "median_ms" in r]
    mine = {
        (r["name"], r["dtype"]): r["median_ms"]
        for r in timed
        if (r["name"], r["dtype"]) in (("cir/cpu", "float32"), ("cir/exact-from-int8", "float32"))
    }
    headings = ["x cir/cpu float32", "x exact-from-int8"]
    print(
        f"{'':28} {'rows as':8} {'median ms':>10} {'p10':>9} {'p90':>9} {'of roof':>8} {'extra MB':>9} "
        + " ".join(f"{h:>18}" for h in headings[: len(mine)])
    )
    for r in timed:
        roof = "" if r["of_roofline"] is None else f"{r['of_roofline']:.2f}"
        ratios = " ".join(f"{r['median_ms'] / base:18.2f}" for base in mine.values())
        notes = [f"{r['of_sgemm']:.2f} of SGEMM"] if "of_sgemm" in r else []
        if "recall" in r:
            notes.append(f"recall@{report['k']} {r['recall']:.3f}, lowest {r['recall_lowest']:.2f}")
        if "queries_timed" in r:
            notes.append(f"{r['queries_timed']} queries timed, scaled")
        print(
            f"{r['name']:28} {r['dtype']:8} {r['median_ms']:10.2f} {r['p10_ms']:9.2f} {r['p90_ms']:9.2f} "
            f"{roof:>8} {r['extra_bytes'] / 1e6:9.1f} {ratios}  {', '.join(notes)}".rstrip()
        )
    for r in report["results"]:
        if "skipped" in r:
            print(f"{r['name']:28} {r['dtype']:8} skipped: {r['skipped']}")
