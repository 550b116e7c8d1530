"""`cir-train`: train a model as a TOML file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_infer.console.common import CirParser, print_json, run_command
from cir_infer.errors import UsageError
from cir_infer.extras import require

__all__ = ["main"]


def _parser() -> CirParser:
    parser = CirParser(
        "cir-train",
        "Train a composed-retrieval model and write model.pt and log.jsonl. An interrupted training "
        "continues when the same command is given again.",
        example="cir-train models/artemis-scenes/config.toml --data data/scenes -o scenes-run",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="TOML file, see docs/training.md")
    parser.add_argument(
        "--data", type=Path, help="folder of the data set (default: data.path of the TOML file)"
    )
    parser.add_argument(
        "--system",
        help="train this system instead of the TOML file's, over the same encoders (docs/systems.md)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="a value in place of the TOML file's, e.g. training.seed=1 or model.form=paper; may be repeated",
    )
    parser.add_argument(
        "--initial",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="weights to start from: a model.pt, torchvision's ResNet, GloVe's text file, or the folder of a "
        "BERT or CLIP (docs/training.md); may be repeated",
    )
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: the TOML file's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's choice)")
    parser.add_argument(
        "--restart",
        action="store_true",
        help="train anew, whatever the folder holds of a training, interrupted or finished",
    )
    return parser


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `cir-train`."""
    args = _parser().parse_args(arguments)
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads}; expected at least 1")

    require("cir-train", "torch")
    import torch

    from cir_export.training.configuration import read_config
    from cir_export.training.systems import model_for_system
    from cir_export.training.trainer import TrainingFiles, train

    config = read_config(args.config)
    if args.data is not None:
        config = config.with_data(args.data)
    if args.system is not None:
        config = replace(config, model=model_for_system(config.model, args.system))
    config = config.changed(args.set)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = args.output or args.config.parent
    report = (lambda _: None) if args.json else _say
    end = train(config, out, args.device, args.restart, report, args.initial)
    if end:  # only the first of several processes has something to say
        print_json(end) if args.json else print(f"wrote {TrainingFiles(out).model}")
    return 0


def _say(entry: dict[str, Any]) -> None:
    """One line an entry of the log."""
    if entry["event"] == "start":
        print(
            f"{entry['model']['system']}: {entry['parameters']:,} parameters, "
            f"{entry['train']['queries']:,} queries",
            flush=True,
        )
        return
    found = entry["validation" if entry["event"] == "epoch" else "test"]
    recall = "not measured: the data set has no split for it"
    if found is not None:
        recall = "  ".join(f"R@{k} {share:.3f}" for k, share in found["recall"].items())
    if entry["event"] == "epoch":
        print(
            f"epoch {entry['epoch']:3d}  loss {entry['loss']:.3f}  {recall}  {entry['seconds']:.0f} s",
            flush=True,
        )
    elif found is None:
        print(f"test, epoch {entry['best_epoch']}: {recall}")
    else:
        print(
            f"{found['split']}, {found['queries']:,} queries in {found['gallery']:,} images, "
            f"epoch {entry['best_epoch']}: {recall}"
        )
