"""`cir-bench compare`: ours against PyTorch, torch.compile, ONNX Runtime alone and the literal loop."""

from __future__ import annotations

import argparse

from cir_bench.commands.kept import add_output, keep_and_print
from cir_bench.commands.numbers import at_least_one, positive
from cir_infer.console.progress import tell
from cir_infer.errors import UsageError
from cir_infer.extras import require

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = """cir-bench compare model.pt --rows 100000
  cir-bench compare --seeded resnet50 --device cuda --output compare.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="what cir-export takes")
    parser.add_argument(
        "--vocab", metavar="FILE", help="the vocabulary of a checkpoint that does not hold it"
    )
    parser.add_argument(
        "--seeded", metavar="TRUNK", help="instead of a model: random ARTEMIS on resnet18 or resnet50"
    )
    parser.add_argument(
        "--rows", type=at_least_one, default=15_000, metavar="N", help="gallery rows (default 15000)"
    )
    parser.add_argument(
        "-k", "--k", type=at_least_one, default=50, metavar="N", help="hits a query (default 50)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=10.0, metavar="S", help="each comparison (default 10)"
    )
    parser.add_argument(
        "--rounds", type=at_least_one, default=20, metavar="N", help="of each at least (default 20)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or tensorrt (default cpu)")
    parser.add_argument(
        "--threads", type=at_least_one, metavar="N", help="CPU threads, for all alike (default: cores)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    if (args.model is None) == (args.seeded is None):
        raise UsageError("expected either MODEL or --seeded TRUNK")
    if args.k > args.rows:
        raise UsageError(f"--k {args.k} of --rows {args.rows:,}; expected fewer hits than rows")
    require("cir-bench compare", "torch", "onnx", "onnxscript")
    from cir_bench.compare.measurement import Settings, measure_comparison
    from cir_bench.report.text import compare_text
    from cir_bench.results import ensure_writable
    from cir_bench.seeded_models import seeded_model

    ensure_writable(args.output, [args.model])
    if args.seeded is not None:
        trained = seeded_model(trunk=args.seeded)
    else:
        from cir_export.checkpoints import load_trained

        trained = load_trained(args.model, args.vocab)
    result = measure_comparison(
        trained,
        Settings(
            args.rows, args.k, args.seconds, args.device, args.threads, not args.no_compile, args.rounds
        ),
        tell,
    )
    keep_and_print(args, result, compare_text)
    return 0
