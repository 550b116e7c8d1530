"""`cir-bench emoji`: build the data set of emoji from the public packages (docs/emoji.md)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from cir_bench.commands.plans import add_plan, plan_of
from cir_infer.console.common import print_json
from cir_infer.console.progress import progress_bar

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench emoji data/emoji --styles noto twemoji --seed 0"

_NUMBERS = {
    "test_queries": "queries over held-out compositions, at most",
    "validation_queries": "queries over others that are held out, at most",
    "train_families": "groups of training emoji that are near each other",
    "hard_negatives": "for each target, emoji that differ in one attribute",
    "seed": "queries are drawn from it; pictures do not depend on it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from cir_eval.datasets.emoji.drawing import Plan
    from cir_eval.datasets.emoji.packages import STYLES

    parser.add_argument("out", metavar="OUT", type=Path, help="folder to create")
    parser.add_argument(
        "--styles",
        nargs="+",
        choices=STYLES,
        default=list(STYLES),
        help="whose pictures (default: all; openmoji needs cir-infer[emoji])",
    )
    parser.add_argument(
        "--from",
        dest="given",
        metavar="FOLDER",
        type=Path,
        help="take the packages' tarballs from this folder and fetch nothing: "
        + ", ".join(style.package.file for style in STYLES.values()),
    )
    add_plan(parser, Plan(), _NUMBERS)


def run(args: argparse.Namespace) -> int:
    """Fetch, draw, and say what was written and under which licences."""
    from cir_eval.datasets.emoji.building import build
    from cir_eval.datasets.emoji.drawing import Plan
    from cir_eval.datasets.emoji.packages import STYLES

    plan = plan_of(args, Plan, _NUMBERS)

    def bar(done: Iterable[int], total: int, name: str) -> Iterable[int]:
        return progress_bar(done, total or None, description=name, unit="kB" if total else "picture")

    description = build(args.out, [STYLES[name] for name in args.styles], plan, args.given, bar)
    if args.json:
        print_json({"path": args.out, **description})
        return 0
    print(f"{args.out}: {description['emoji']:,} emoji")
    for name, style in description["styles"].items():
        print(f"  {name}: {style['licence']}, {style['package']}")
    for split, count in description["splits"].items():
        print(f"  {split}: {count:,} queries")
    return 0
