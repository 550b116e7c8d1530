"""`cir-bench ablation`: ARTEMIS against its parts, all trained alike (Table 1 of the paper)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import stdev
from typing import Any

from cir_bench.trainings import add_training_arguments, begin, finished, write_table
from cir_infer.errors import UsageError

__all__ = ["EXAMPLE", "add_arguments", "run", "table"]

EXAMPLE = "cir-bench ablation models/artemis-scenes/config.toml --data data/scenes -o ablation"

SYSTEMS = {
    "image-only": "image only",
    "text-only": "text only",
    "late-fusion": "late fusion",
    "is-only": "ARTEMIS, IS only",
    "em-only": "ARTEMIS, EM only",
    "artemis": "ARTEMIS",
}
"""System -> its row in the table, in the paper's order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_training_arguments(parser, SYSTEMS, "system and seed are")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each system (default 3)"
    )


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, then write recall.json and recall.md.

    Finished trainings are kept and an interrupted one continues, so the command may be given again.
    """
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}; expected at least 1")
    begin(args, "cir-bench ablation")
    from cir_export.training.configuration import read_config
    from cir_export.training.trainer import TrainingFiles, train

    config = read_config(args.config)
    if args.data is not None:
        config = config.with_data(args.data)
    results = []
    for system in args.systems:
        for seed in range(args.seeds):
            one = replace(
                config,
                model={**config.model, "system": system},
                training=replace(config.training, seed=config.training.seed + seed),
            )
            folder = args.out / f"{system}-{one.training.seed}"
            end = finished(TrainingFiles(folder).log, one.training.seed)
            if end is None:
                end = train(one, folder, args.device)
            results.append(end)
            if not args.json:
                print(f"{system}, seed {one.training.seed}: R@1 {end['test']['recall']['1']:.3f}", flush=True)
    write_table(args, results, table(results))
    return 0


def table(results: list[dict[str, Any]]) -> str:
    """The recall table in Markdown: a row a system, mean and deviation over its seeds."""
    first = results[0]["test"]
    ranked = all("median_rank" in r["test"] for r in results)
    lines = [
        f"{first['queries']:,} queries over held-out compositions in a gallery of "
        f"{first['gallery']:,} scenes with hard negatives; the reference is excluded.",
        "",
        f"| system | R@1 | R@5 | R@10 |{' median rank |' if ranked else ''} trainings | parameters | "
        "wall minutes | CPU minutes |",
        f"|---|---|---|---|{'---|' if ranked else ''}---|---|---|---|",
    ]
    for system, label in SYSTEMS.items():
        runs = [r for r in results if r["system"] == system]
        if not runs:
            continue
        cells = [_share([r["test"]["recall"][k] for r in runs]) for k in ("1", "5", "10")]
        if ranked:
            cells.append(f"{sum(r['test']['median_rank'] for r in runs) / len(runs):.0f}")
        minutes = [f"{sum(r[k] for r in runs) / len(runs) / 60:.1f}" for k in ("seconds", "cpu_seconds")]
        cells += [str(len(runs)), f"{runs[0]['parameters']:,}", *minutes]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        "Recall is in per cent, measured on the stored weights of the epoch of the best validation R@1. With "
        "several trainings it is their mean and standard deviation, and ranks and minutes are their mean. "
        "Parameters are those of the modules that a system runs. Wall minutes include all else that the "
        "machine did meanwhile; CPU minutes are processor time of all threads.",
    ]
    kinds = list(first["recall_at_1_by_kind"])
    lines += [
        "",
        "R@1 by what the text modifies:",
        "",
        f"| system | {' | '.join(kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for system, label in SYSTEMS.items():
        runs = [r for r in results if r["system"] == system]
        if runs:
            cells = [_share([r["test"]["recall_at_1_by_kind"][k] for r in runs]) for k in kinds]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(values: list[float]) -> str:
    """The mean in per cent, with the standard deviation of the sample where there are several."""
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"
