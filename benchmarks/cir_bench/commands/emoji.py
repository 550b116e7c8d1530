"""`cir-bench emoji`: build the data set of emoji from the public packages (docs/emoji.md)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from cir_infer.console.common import print_json
from cir_infer.console.progress import progress_bar

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench emoji data/emoji --styles noto twemoji --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from cir_eval.datasets.emoji.drawing import Plan
    from cir_eval.datasets.emoji.packages import STYLES

    default = Plan()
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
    for flag, value, what in (
        ("--test-queries", default.test_queries, "queries over held-out compositions, at most"),
        (
            "--validation-queries",
            default.validation_queries,
            "queries over others that are held out, at most",
        ),
        ("--train-families", default.families, "groups of training emoji that are near each other"),
        ("--hard-negatives", default.hard_negatives, "for each target, emoji that differ in one attribute"),
        ("--seed", default.seed, "queries are drawn from it; pictures do not depend on it"),
    ):
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{what} (default {value})")


def run(args: argparse.Namespace) -> int:
    """Fetch, draw, and say what was written and under which licences."""
    from cir_eval.datasets.emoji.building import build
    from cir_eval.datasets.emoji.drawing import Plan
    from cir_eval.datasets.emoji.packages import STYLES

    plan = Plan(
        families=args.train_families,
        validation_queries=args.validation_queries,
        test_queries=args.test_queries,
        hard_negatives=args.hard_negatives,
        seed=args.seed,
    )

    def bar(done: Iterable[int], total: int, name: str) -> Iterable[int]:
        return progress_bar(done, total or None, description=name, unit="kB" if total else "picture")

    description = build(args.out, [STYLES[name] for name in args.styles], plan, args.given, bar)
    if args.json:
        print_json({"path": args.out, **description})
        return 0
    print(f"{args.out}: {description['emoji']} emoji")
    for name, style in description["styles"].items():
        print(f"  {name}: {style['licence']}, {style['package']}")
    for split, count in description["splits"].items():
        print(f"  {split}: {count} queries")
    return 0
