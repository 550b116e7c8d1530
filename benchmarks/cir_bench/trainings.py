"""What the commands share that train several systems alike: flags, what is finished, and the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cir_infer.console.common import print_json
from cir_infer.errors import TrainingError, UsageError
from cir_infer.extras import require

__all__ = ["add_training_arguments", "begin", "by_part", "finished", "measured_on", "write_table"]


def add_training_arguments(parser: argparse.ArgumentParser, systems: Iterable[str], replaced: str) -> None:
    """Declare the flags.

    Args:
        parser: of the command.
        systems: that can be trained.
        replaced: what the command sets itself in the configuration.
    """
    names = list(systems)
    parser.add_argument("config", type=Path, help=f"TOML file of cir-train; its {replaced} replaced")
    parser.add_argument("--data", type=Path, help="folder of the data set (default: the TOML file's)")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for the trainings and the table"
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"what to train, in this order (default: all; {', '.join(names)})",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="processor threads (default: PyTorch's choice)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def begin(args: argparse.Namespace, command: str) -> None:
    """Check what is there, and set the threads.

    Raises:
        UsageError: fewer than one thread.
        CirError: torch is missing.
    """
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads}; expected at least 1")
    require(command, "torch")
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)


def finished(log: Path, seed: int | None = None) -> dict[str, Any] | None:
    """The last entry of a finished training's log; None where it is not finished.

    Args:
        log: the training's `log.jsonl`.
        seed: that it must be of; None for any.

    Raises:
        TrainingError: the log is damaged, or of another seed.
    """
    if not log.is_file():
        return None
    try:
        end: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        if end["event"] != "end":
            return None
        if seed is not None and end["seed"] != seed:
            raise TrainingError(f"{log} is of seed {end['seed']}, expected {seed}; remove its folder")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TrainingError(f"{log} is damaged ({error}); remove its folder") from error
    return end


def measured_on(test: Mapping[str, Any]) -> str:
    """What a table's recall was measured on, in a sentence.

    Args:
        test: of the last entry of a training's log.
    """
    asked, gallery = f"{test['queries']:,} queries over held-out compositions", int(test["gallery"])
    if "parts" not in test:
        return f"{asked} in a gallery of {gallery:,} scenes with hard negatives; the reference is excluded."
    count = len(test["parts"])
    return (
        f"{asked}, in {count} parts with {gallery // count:,} pictures in the gallery of each; the reference "
        "is excluded. Recall is the mean over the parts."
    )


def by_part(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of R@1 by part in Markdown, a row a part; nothing where there are no parts.

    Args:
        tests: label of a system -> `test` of the last entry of its training's log.
    """
    parts = next(iter(tests.values())).get("parts", {})
    if not parts:
        return []
    lines = ["", "R@1 by part:", "", f"| part | {' | '.join(tests)} |", "|---" * (len(tests) + 1) + "|"]
    for part in parts:
        shares = (f"{100 * test['parts'][part]['R@1']:.1f}" for test in tests.values())
        lines.append(f"| {part} | {' | '.join(shares)} |")
    return lines


def write_table(args: argparse.Namespace, results: Any, table: str) -> None:
    """Write recall.json and recall.md, and print what was asked for."""
    (args.out / "recall.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "recall.md").write_text(table, encoding="utf-8")
    if args.json:
        print_json({"trainings": results})
    else:
        print(f"\n{table}")
