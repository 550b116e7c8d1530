"""`cir-bench scenes`: generate the composed-retrieval data set of scenes (docs/scenes.md)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from cir_bench.commands.plans import add_plan, plan_of
from cir_infer.console.common import print_json
from cir_infer.console.progress import progress_bar
from cir_infer.errors import UsageError
from cir_infer.processes.cpus import available_cpus

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench scenes /data/scenes --gallery 5000 --train-families 1500 --seed 0"

_NUMBERS = {
    "gallery": "scenes of the test split",
    "test_queries": "queries over held-out compositions",
    "hard_negatives": "for each target, scenes that differ in one attribute",
    "validation_queries": "queries over compositions as in training",
    "train_families": "groups of 16 training scenes, 32 queries each",
    "seed": "everything is drawn from it",
    "image_size": "pixels a side",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from cir_eval.datasets.scenes.generation import Plan
    from cir_eval.datasets.scenes.rendering import VIEWS

    parser.add_argument("out", metavar="OUT", type=Path, help="folder to create")
    add_plan(parser, Plan(), _NUMBERS)
    jobs = available_cpus()
    parser.add_argument(
        "--jobs",
        type=int,
        default=jobs,
        metavar="N",
        help=f"processes that render; do not change the result (default {jobs})",
    )
    parser.add_argument(
        "--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="renderings to write (default: both)"
    )


def run(args: argparse.Namespace) -> int:
    """Generate and say what was written."""
    from cir_eval.datasets.scenes.generation import Plan, generate

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}; expected 1 or more")
    plan = plan_of(args, Plan, _NUMBERS, views=tuple(args.views))

    def bar(batches: Iterable[int], total: int) -> Iterable[int]:
        return progress_bar(batches, total, description="rendering", unit="batch")

    description = generate(args.out, plan, args.jobs, bar)
    if args.json:
        print_json({"path": args.out, **description})
    else:
        for name, count in description["splits"].items():
            print(f"{args.out / name}: {count['scenes']:,} scenes, {count['queries']:,} queries")
    return 0
