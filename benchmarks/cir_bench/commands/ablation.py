"""`cir-bench ablation`: ARTEMIS against its parts, all trained alike (Table 1 of the paper)."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

from cir_infer.console.common import print_json
from cir_infer.errors import TrainingError, UsageError
from cir_infer.extras import require

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
    parser.add_argument("config", type=Path, help="TOML file of cir-train; its system and seed are replaced")
    parser.add_argument("--data", type=Path, help="folder of the data set (default: the TOML file's)")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for the trainings and the table"
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=SYSTEMS,
        default=list(SYSTEMS),
        help="what to train, in this order (default: all)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each system (default 3)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="processor threads (default: PyTorch's choice)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, then write recall.json and recall.md.

    Finished trainings are kept and an interrupted one continues, so the command may be given again.
    """
    if args.seeds < 1 or (args.threads is not None and args.threads < 1):
        raise UsageError("--seeds and --threads are at least 1")
    require("cir-bench ablation", "torch")
    import torch

    from cir_export.training.configuration import read_config
    from cir_export.training.trainer import TrainingFiles, train

    if args.threads is not None:
        torch.set_num_threads(args.threads)
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
            end = _finished(TrainingFiles(folder).log, one.training.seed)
            if end is None:
                end = train(one, folder, args.device)
            results.append(end)
            if not args.json:
                print(f"{system}, seed {one.training.seed}: R@1 {end['test']['recall']['1']:.3f}", flush=True)
    (args.out / "recall.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "recall.md").write_text(table(results), encoding="utf-8")
    if args.json:
        print_json({"trainings": results})
    else:
        print(f"\n{table(results)}")
    return 0


def _finished(log: Path, seed: int) -> dict[str, Any] | None:
    """The last entry of a finished training's log."""
    if not log.is_file():
        return None
    try:
        end: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        if end["event"] != "end":
            return None
        if end["seed"] != seed:
            raise TrainingError(f"{log} is of seed {end['seed']}, expected {seed}; remove its folder")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TrainingError(f"{log} is damaged ({error}); remove its folder") from error
    return end


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
