"""`cir-bench scenes`: generate the composed-retrieval data set of scenes (docs/scenes.md)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from cir_infer.console.common import print_json
from cir_infer.console.progress import progress_bar
from cir_infer.errors import UsageError
from cir_infer.processes.cpus import available_cpus

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench scenes /data/scenes --gallery 5000 --train-families 1500 --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from cir_eval.datasets.scenes.generation import Plan
    from cir_eval.datasets.scenes.rendering import VIEWS

    default = Plan()
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to create")
    for flag, value, what in (
        ("--gallery", default.gallery, "scenes of the test split"),
        ("--test-queries", default.test_queries, "queries over held-out compositions"),
        ("--hard-negatives", default.hard_negatives, "for each target, scenes that differ in one attribute"),
        ("--validation-queries", default.validation_queries, "queries over compositions as in training"),
        ("--train-families", default.train_families, "groups of 16 training scenes, 32 queries each"),
        ("--seed", default.seed, "everything is drawn from it"),
        ("--image-size", default.image_size, "pixels a side"),
        ("--jobs", available_cpus(), "processes that render; do not change the result"),
    ):
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{what} (default {value})")
    parser.add_argument(
        "--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="renderings to write (default: both)"
    )


def run(args: argparse.Namespace) -> int:
    """Generate and say what was written."""
    from cir_eval.datasets.scenes.generation import Plan, generate

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}; expected 1 or more")
    plan = Plan(
        train_families=args.train_families,
        validation_queries=args.validation_queries,
        test_queries=args.test_queries,
        gallery=args.gallery,
        hard_negatives=args.hard_negatives,
        seed=args.seed,
        image_size=args.image_size,
        views=tuple(args.views),
    )

    def bar(batches: Iterable[int], total: int) -> Iterable[int]:
        return progress_bar(batches, total, description="rendering", unit="batch")

    description = generate(args.out, plan, args.jobs, bar)
    if args.json:
        print_json({"path": args.out, **description})
    else:
        for name, count in description["splits"].items():
            print(f"{args.out / name}: {count['scenes']} scenes, {count['queries']} queries")
    return 0
