"""`cir-bench scoring`: exact scorers against the read roofline and against what else one could do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from cir_bench.commands.numbers import at_least_one, not_negative
from cir_bench.machine import stamp
from cir_bench.report.text import scored_rows
from cir_infer.console.common import print_json
from cir_infer.console.progress import tell
from cir_infer.errors import UsageError
from cir_infer.extras import EXTRAS, require
from cir_infer.scoring.cpu import kernels_hash

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench scoring --rows 400000 --queries 1 --k 50 --json"
DTYPES = ("float32", "float16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    for flag, value, what in (
        ("--rows", 400_000, "gallery rows"),
        ("--dim", 512, "values a row"),
        ("--tokens", 1, "vectors an item, the largest of whose dot products is its score"),
        ("--queries", 1, "queries that are asked at once"),
        ("--rounds", 15, "how often each entry is timed, in turn with the others"),
        ("--seed", 0, "rows and queries are drawn from it"),
    ):
        kind = not_negative if flag == "--seed" else at_least_one
        parser.add_argument(flag, type=kind, default=value, metavar="N", help=f"{what} (default {value})")
    parser.add_argument(
        "-k", "--k", type=at_least_one, default=50, metavar="N", help="results a query (default 50)"
    )
    parser.add_argument(
        "--threads", type=at_least_one, metavar="N", help="CPU threads (default: every usable core)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=list(DTYPES),
        help="types of rows for our kernels (default: all)",
    )
    parser.add_argument(
        "--linearised",
        choices=("usearch", "faiss", "lancedb"),
        help="time the linearised first stage with this library's HNSW graph, or the product quantiser of a "
        "LanceDB, over rows that have neighbours",
    )
    parser.add_argument(
        "--every-instruction-set",
        action="store_true",
        help="time our kernels once for each instruction set of this machine, and no alternative",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to score (default cpu)"
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="with --device cuda: 15k, 100k, 1M and 10M rows by 1, 8, 64 and 1,024 queries, and predictions "
        "for other GPUs",
    )


def run(args: argparse.Namespace) -> int:
    """Verify, time, print."""
    if args.k > args.rows:
        raise UsageError(f"--k {args.k:,} of {args.rows:,} rows; expected no more than the rows")
    if args.sweep:
        return _sweep(args)
    if args.linearised in EXTRAS:
        require(f"--linearised {args.linearised}", args.linearised)
    if args.tokens > 1 and (args.device == "cuda" or args.linearised):
        raise UsageError("--tokens is measured on the CPU, against PyTorch alone; leave the other flag out")
    results = _on_cuda(args) if args.device == "cuda" else _on_cpu(args)
    report = {
        **stamp(),
        **({"kernels_sha256": kernels_hash()} if args.device == "cpu" else {}),
        "rows": args.rows,
        "dim": args.dim,
        **({"tokens": args.tokens} if args.tokens > 1 else {}),
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
    from cir_bench.scoring.workload import (
        Workload,
        artemis_terms,
        latent_rows,
        plain_terms,
        unit_items,
        unit_rows,
    )
    from cir_infer.processes.cpus import available_cpus
    from cir_infer.scoring.cpu import instruction_sets

    if args.tokens > 1:
        values = unit_items(args.rows, args.tokens, args.dim, args.seed)
        terms = plain_terms(args.queries, args.dim, args.seed + 1)
    elif args.linearised:
        values = latent_rows(args.rows, args.dim, args.seed)
        terms = artemis_terms(args.queries, args.dim, args.seed + 1, near=values)
    else:
        values = unit_rows(args.rows, args.dim, args.seed)
        terms = artemis_terms(args.queries, args.dim, args.seed + 1)
    work = Workload(values, terms, args.k, args.threads or available_cpus())
    each = instruction_sets() if args.every_instruction_set else ()
    return measure(work, tuple(args.dtype), args.rounds, tell, args.linearised, each)


def _on_cuda(args: argparse.Namespace) -> list[dict[str, Any]]:
    from cir_bench.cuda_scoring import Case, measure

    case = Case(args.rows, args.dim, args.queries, args.k, args.rounds)
    return measure(case, tuple(args.dtype), progress=tell)


def _sweep(args: argparse.Namespace) -> int:
    """Every size; tables, or one object that `cir-bench report` reads."""
    from cir_bench.cuda_scoring import sweep

    if args.device != "cuda":
        raise UsageError("--sweep measures a GPU; add --device cuda, or measure one size")
    head = stamp()
    found = sweep(dim=args.dim, k=args.k, samples=args.rounds, progress=tell)
    if args.json:
        print_json({"kind": "gpu-check", **head, "benchmark": found})
        return 0
    for case in found["cases"]:
        _print_table({**head, **case})
    for size in found["left_out"]:
        print(f"left out: {size['rows']:,} rows, {size['queries']:,} queries: {size['why']}")
    for entry in found["predictions"]:
        print(
            f"predicted, not measured: {entry['gpu']}, {entry['rows']:,} rows, one query: "
            f"{entry['scan_ms']:.2f} ms"
        )
    return 0


def _print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']['name']}, commit {report['commit']}")
    print(
        f"{scored_rows(report)} rows, {report['queries']:,} "
        f"{'query' if report['queries'] == 1 else 'queries'}, k = {report['k']}"
    )
    timed = [r for r in report["results"] if "median_ms" in r]
    ours = list(dict.fromkeys(name for r in timed for name in r.get("over_ours", {})))
    print(
        f"{'':36} {'rows as':8} {'median ms':>10} {'p10':>9} {'p90':>9} {'of roof':>8} {'extra MB':>9} "
        + " ".join(f"{'x ' + name.removeprefix('cir/'):>27}" for name in ours)
    )
    for r in timed:
        roof = "" if r["of_roofline"] is None else f"{r['of_roofline']:.2f}"
        over = r.get("over_ours", {})
        ratios = " ".join(f"{over[name]['median']:27.2f}" if over else " " * 27 for name in ours)
        print(
            f"{r['name']:36} {r['dtype']:8} {r['median_ms']:10.2f} {r['p10_ms']:9.2f} {r['p90_ms']:9.2f} "
            f"{roof:>8} {r['extra_bytes'] / 1e6:9.1f} {ratios}  {', '.join(_notes(r, report))}".rstrip()
        )
    for r in report["results"]:
        if "skipped" in r:
            print(f"{r['name']:36} {r['dtype']:8} skipped: {r['skipped']}")


def _notes(result: dict[str, Any], report: dict[str, Any]) -> Iterator[str]:
    if "of_sgemm" in result:
        yield f"{result['of_sgemm']:.2f} of SGEMM"
    if "list_rows" in result:
        yield f"lists of {result['list_rows']:,.0f} rows, {result['bounded_share']:.0%} bounded in bytes"
    if "in_cache_ms" in result:
        yield f"{result['in_cache_ms']:.1f} ms from cache"
    if "score_error" in result:
        yield f"error {result['score_error']:.0e}"
    if "recall" in result:
        yield f"recall@{report['k']} {result['recall']:.3f}, lowest {result['recall_lowest']:.2f}"
        yield f"index built in {result['build_s']:.0f} s"
    if "queries_timed" in result:
        yield f"{result['queries_timed']:,} queries timed, scaled"
