"""`cir-bench ablation`: a system against its parts, all trained alike (ARTEMIS, Table 1; SAC)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import stdev
from typing import Any, NamedTuple

from cir_bench.trainings import (
    add_training_arguments,
    alone,
    begin,
    columns_of,
    finished,
    measured_on,
    recall_of,
    trained,
    write_table,
)
from cir_infer.errors import UsageError, shown

__all__ = ["EXAMPLE", "add_arguments", "run", "table"]

EXAMPLE = "cir-bench ablation models/artemis-scenes/config.toml --data data/scenes -o ablation"


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        label: in the table.
        system: what is trained.
        changes: of the configuration, as `--set` of `cir-train` takes them.
    """

    label: str
    system: str
    changes: tuple[str, ...] = ()


ABLATIONS: dict[str, dict[str, Row]] = {
    "artemis": {
        "image-only": Row("image only", "image-only"),
        "text-only": Row("text only", "text-only"),
        "late-fusion": Row("late fusion", "late-fusion"),
        "is-only": Row("ARTEMIS, IS only", "is-only"),
        "em-only": Row("ARTEMIS, EM only", "em-only"),
        "artemis": Row("ARTEMIS", "artemis"),
    },
    "sac": {
        "fine": Row("SAC, the fine level alone", "sac", ("model.levels=fine",)),
        "coarse": Row("SAC, the coarse level alone", "sac", ("model.levels=coarse",)),
        "no-attention": Row("SAC without attention", "sac", ("model.attention=false",)),
        "no-discriminator": Row("SAC without the discriminator", "sac", ("model.discriminator=0",)),
        "no-consistency": Row("SAC without consistency", "sac", ("model.consistency=0",)),
        "triplet": Row(
            "SAC, its triplet loss alone", "sac", ("model.discriminator=0", "model.consistency=0")
        ),
        "multiply": Row("SAC, product", "sac", ("model.composition=multiply",)),
        "concatenate": Row("SAC, concatenation", "sac", ("model.composition=concatenate",)),
        "paper": Row('SAC, form = "paper"', "sac", ("model.form=paper",)),
        "sac": Row("SAC", "sac"),
    },
}
"""Whose ablation -> its rows, in the order of the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    names = [name for rows in ABLATIONS.values() for name in rows]
    add_training_arguments(parser, names, "system and seed are")
    parser.add_argument(
        "--of",
        choices=ABLATIONS,
        default="artemis",
        help="the system whose parts are weighed (default artemis)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each row (default 3)")


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, then write recall.json and recall.md.

    Finished trainings are kept and an interrupted one continues, so the command may be given again.
    """
    rows = ABLATIONS[args.of]
    for name in args.systems or ():
        if name not in rows:
            raise UsageError(f"--systems {shown(name)}: not of {args.of}; expected some of {', '.join(rows)}")
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}; expected at least 1")
    begin(args, "cir-bench ablation")
    from cir_export.training.configuration import read_config
    from cir_export.training.systems import model_for_system

    config = read_config(args.config)
    if args.data is not None:
        config = config.with_data(args.data)
    results = []
    with alone(args.output):
        for name in args.systems or rows:
            for seed in range(args.seeds):
                one = replace(
                    config,
                    model=model_for_system(config.model, rows[name].system),
                    training=replace(config.training, seed=config.training.seed + seed),
                ).changed(rows[name].changes)
                folder = args.output / f"{name}-{one.training.seed}"
                end = finished(folder / "log.jsonl", one) or trained(one, folder, args.device)
                results.append({"row": name, **end})
                if not args.json:
                    print(f"{name}, seed {one.training.seed}: {recall_of(end)}", flush=True)
    write_table(args, results, table(results, args.of))
    return 0


def table(results: list[dict[str, Any]], of: str = "artemis") -> str:
    """The recall table in Markdown: mean and deviation over a row's seeds.

    Args:
        results: the last entries of the trainings' logs, each with its "row"; without, it is its system.
        of: one of `ABLATIONS`.
    """
    first = results[0]["test"]
    ks = columns_of(first)
    ranked = all("median_rank" in r["test"] for r in results)
    lines = [
        measured_on(first),
        "",
        f"| system | {' | '.join(f'R@{k}' for k in ks)} |{' median rank |' if ranked else ''} trainings | "
        "parameters | wall minutes | CPU minutes |",
        f"|---|{'---|' * len(ks)}{'---|' if ranked else ''}---|---|---|---|",
    ]
    for name, row in ABLATIONS[of].items():
        runs = [r for r in results if r.get("row", r["system"]) == name]
        if not runs:
            continue
        cells = [_share([r["test"]["recall"][k] for r in runs]) for k in ks]
        if ranked:
            cells.append(f"{sum(r['test']['median_rank'] for r in runs) / len(runs):.0f}")
        minutes = [f"{sum(r[k] for r in runs) / len(runs) / 60:.1f}" for k in ("seconds", "cpu_seconds")]
        cells += [str(len(runs)), f"{runs[0]['parameters']:,}", *minutes]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    lines += [
        "",
        "Recall is in per cent, measured on the stored weights of the epoch of the best validation R@1. With "
        "several trainings it is their mean and standard deviation, and ranks and minutes are their mean. "
        "Parameters are those of the modules that a system runs. Wall minutes include all else that the "
        "machine did meanwhile; CPU minutes are processor time of all threads.",
    ]
    kinds = list(first.get("recall_at_1_by_kind", ()))
    if not kinds:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "R@1 by what the text modifies:",
        "",
        f"| system | {' | '.join(kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for name, row in ABLATIONS[of].items():
        runs = [r for r in results if r.get("row", r["system"]) == name]
        if runs:
            cells = [_share([r["test"]["recall_at_1_by_kind"][k] for r in runs]) for k in kinds]
            lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(values: list[float]) -> str:
    """The mean in per cent, with the standard deviation of the sample where there are several."""
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"
