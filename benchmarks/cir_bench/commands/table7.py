"""`cir-bench table7`: the efficiency table of the ARTEMIS paper, replayed on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from cir_bench.commands.kept import add_output, keep_and_print
from cir_bench.commands.numbers import at_least_one
from cir_infer.extras import require

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = """cir-bench table7
  cir-bench table7 --data /data/fashionIQ --all --device cuda --output table7.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="FashionIQ; default: generated, of its shape"
    )
    parser.add_argument(
        "--images",
        type=at_least_one,
        default=512,
        metavar="N",
        help="images to encode, scaled to all (default 512)",
    )
    parser.add_argument(
        "--queries",
        type=at_least_one,
        default=64,
        metavar="N",
        help="queries a category to loop over the authors' way, and eight times as many ours where a "
        "composition reads maps, scaled to all (default 64)",
    )
    parser.add_argument(
        "--all", action="store_true", help="scale nothing: every image, every query, both ways"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or tensorrt (default cpu)")
    parser.add_argument(
        "--threads", type=at_least_one, metavar="N", help="CPU threads, for all alike (default: cores)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".cache/table7"),
        metavar="DIR",
        help="keeps a bundle a system (700 MB)",
    )
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    require("cir-bench table7", "torch", "onnx", "onnxscript")
    from cir_bench.report.text import table7_text
    from cir_bench.results import ensure_writable
    from cir_bench.table7.measurement import Settings, measure_table7

    ensure_writable(args.output)
    result = measure_table7(
        Settings(
            folder=args.work,
            root=args.data,
            images=None if args.all else args.images,
            queries=None if args.all else args.queries,
            device=args.device,
            threads=args.threads,
        )
    )
    keep_and_print(args, result, table7_text)
    return 0
