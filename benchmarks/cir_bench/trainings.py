"""What the commands share that train several systems alike: flags, what is finished, and the table."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cir_bench.results import write_text
from cir_infer.console.common import print_json
from cir_infer.errors import CirError, TrainingError, UsageError, shown
from cir_infer.extras import require
from cir_infer.foreign import has_file, read_json
from cir_infer.processes.locked_files import alone_in

if TYPE_CHECKING:
    from cir_export.training.configuration import DataSettings, TrainingConfig

__all__ = [
    "add_training_arguments",
    "alone",
    "begin",
    "by_part",
    "columns_of",
    "finished",
    "measured_on",
    "recall_of",
    "trained",
    "write_table",
]


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
        "-o", "--output", type=Path, required=True, help="folder for the trainings and the table"
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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only one to train for the table of a folder, which is made, and stays where something is in it.

    Raises:
        TrainingError: somebody else does, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be made: {error.strerror}") from error
    with alone_in(folder, TrainingError, "trains for its table"):
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()


def trained(
    config: TrainingConfig, folder: Path, device: str, initial: Sequence[Path] = ()
) -> dict[str, Any]:
    """As `cir_export.training.trainer.train`, of a data set whose recall a table can hold.

    Raises:
        TrainingError: it has no test split; or see `train`.
    """
    from cir_export.training.sources import open_source
    from cir_export.training.trainer import train

    if open_source(config.data).test is None:
        raise TrainingError(f"{config.data.path} has no test split, on which the table's recall is measured")
    return train(config, folder, device, initial=initial)


def finished(log: Path, config: TrainingConfig) -> dict[str, Any] | None:
    """The last entry of a finished training's log; None where it is not finished.

    Args:
        log: the training's `log.jsonl`.
        config: that it must be of, and of its data where they are there.

    Raises:
        TrainingError: the log is damaged, of another configuration or other data, or has nothing measured on
            a test split.
    """
    if not has_file(log, TrainingError):
        return None
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
        end: dict[str, Any] = read_json(lines[-1])
        if end["event"] != "end":
            return None
        start = read_json(lines[0])
        other = _other(start["training"], vars(config.training), "training")
        other = other or _other(start["model"], config.model, "model")
        was = start.get("data") or {"dataset": start["train"]["data"]}
        said = {name: value for name, value in config.data_said.items() if value}
        if "data" in start:  # in which what is left out is empty
            was, said = ({**dict.fromkeys({*was, *said}, ""), **some} for some in (was, said))
        other = other or _other(was, said, "data")
        found = _looked_at(config.data) if "data_digest" in start else None
        if not other and found is not None:
            queries, pictures = found
            same = queries == start["data_digest"] and start.get("pictures", pictures) == pictures
            other = None if same else f"{config.data.path} holds other queries or images"
        measured = end["test"] is not None
        if measured:
            measured_on(end["test"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TrainingError(f"{log} is damaged ({shown(error)}); remove its folder") from error
    if other:
        raise TrainingError(
            f"{log} is of another training ({other}); give another folder, or remove that one"
        )
    if not measured:
        raise TrainingError(f"{log} has nothing measured on a test split, of which the table is")
    return end


@functools.cache
def _looked_at(data: DataSettings) -> tuple[str, dict[str, Any]] | None:
    """Which queries and pictures there are; None where nothing is there to be asked."""
    from cir_export.training.sources import open_source

    try:
        source = open_source(data)
        return source.digest, asdict(source.contents())
    except CirError:
        return None


def _other(was: Mapping[str, Any], now: Mapping[str, Any], where: str) -> str | None:
    """How a table of a finished training's differs from what it would be now; None where it does not.

    What one of them leaves out may be as the other says: by default, by an earlier release, by the data.
    """
    for name in was.keys() & now.keys() - {"vocabulary_size"}:
        old, new = was[name], now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if (inside := _other(old, new, f"{where}.{name}")) is not None:
                return inside
        elif old != (list(new) if isinstance(new, tuple) else new):
            return f"{where}.{name} was {shown(old)} and is {shown(new)}"
    return None


def recall_of(end: Mapping[str, Any]) -> str:
    """The first recall that a training's protocol counts, for a line on the way.

    Args:
        end: the last entry of its log.
    """
    k, share = next(iter(end["test"]["recall"].items()))
    return f"R@{k} {share:.3f}"


def columns_of(test: Mapping[str, Any]) -> list[str]:
    """For which k a table has recall: the first three that the protocol counts.

    Args:
        test: of the last entry of a training's log.
    """
    return list(test["recall"])[:3]


def measured_on(test: Mapping[str, Any]) -> str:
    """What a table's recall was measured on, in a sentence.

    Args:
        test: of the last entry of a training's log.
    """
    drawn = test.get("protocol", "scenes").split("/")[0] in ("scenes", "emoji")
    gallery, pictures = int(test["gallery"]), "pictures"
    asked = f"{test['queries']:,} queries{' over held-out compositions' if drawn else ''}"
    if "parts" not in test:
        if drawn:
            pictures = "scenes with hard negatives; the reference is excluded"
        return f"{asked} in a gallery of {gallery:,} {pictures}."
    count = len(test["parts"])
    excluded = "; the reference is excluded" if drawn else ""
    return (
        f"{asked}, in {count} parts with {gallery // count:,} pictures in the gallery of each{excluded}. "
        "Recall is the mean over the parts."
    )


def by_part(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of R@1 by part in Markdown, a row a part; nothing where there are no parts.

    Args:
        tests: label of a system -> `test` of the last entry of its training's log.
    """
    first = next(iter(tests.values()))
    parts, k = first.get("parts", {}), f"R@{columns_of(first)[0]}"
    if not parts:
        return []
    lines = ["", f"{k} by part:", "", f"| part | {' | '.join(tests)} |", "|---" * (len(tests) + 1) + "|"]
    for part in parts:
        shares = (f"{100 * test['parts'][part][k]:.1f}" for test in tests.values())
        lines.append(f"| {part} | {' | '.join(shares)} |")
    return lines


def write_table(args: argparse.Namespace, results: Any, table: str) -> None:
    """Write recall.json and recall.md, and print what was asked for.

    Raises:
        UsageError: they cannot be written.
    """
    write_text(args.output / "recall.json", json.dumps(results, indent=1) + "\n")
    write_text(args.output / "recall.md", table)
    if args.json:
        print_json({"trainings": results})
    else:
        print(f"\n{table}")
