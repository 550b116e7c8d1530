"""`cir-bench latency`: how fast and how steady a bundle answers over a gallery."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cir_bench.commands.kept import add_output, keep_and_print
from cir_bench.commands.numbers import at_least_one, not_negative, positive, rate
from cir_infer.console.progress import tell
from cir_infer.extras import require
from cir_infer.runtime.device_names import DEVICES

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = """cir-bench latency artemis.cir shop.gallery
  cir-bench latency artemis.cir shop.gallery --rate 5 --rate 10 --workers 2 --output jetson.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the bundle (.cir)")
    parser.add_argument("gallery", metavar="GALLERY", type=Path, help="the gallery that it encoded")
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} (default auto)")
    parser.add_argument(
        "--devices",
        metavar="A,B",
        help="several, by turns in one run, as ratios; the rest is measured on the first",
    )
    parser.add_argument("--threads", type=at_least_one, metavar="N", help="CPU threads inside an operator")
    parser.add_argument(
        "-k", "--k", type=at_least_one, default=10, metavar="N", help="hits a query (default 10)"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=10.0,
        metavar="S",
        help="for the stages (default 10); half for each load",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="references; default: the gallery's own images"
    )
    parser.add_argument("--texts", type=Path, metavar="FILE", help="texts, one a line; default: generated")
    parser.add_argument(
        "--batch",
        type=at_least_one,
        action="append",
        metavar="N",
        help="queries a batch, repeatable (default 1, 8, 32)",
    )
    parser.add_argument(
        "--rate",
        type=rate,
        action="append",
        metavar="R",
        help="open-loop requests a second, repeatable; 0: none (default: 20%% to 95%% of the closed loop's)",
    )
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=1,
        metavar="N",
        help="threads that answer requests (default 1)",
    )
    parser.add_argument(
        "--starts", type=not_negative, default=5, metavar="N", help="cold starts to time (default 5)"
    )
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    require("cir-bench latency", "onnx")  # which counts what the graphs multiply
    from cir_bench.latency.measurement import Settings, measure_latency
    from cir_bench.report.text import latency_text
    from cir_bench.results import ensure_writable

    ensure_writable(args.output, [args.bundle, args.texts])
    devices = tuple((args.devices or "").split(",")) if args.devices else ()
    rates = None if args.rate is None else tuple(rate for rate in args.rate if rate > 0)
    result: dict[str, Any] = measure_latency(
        Settings(
            bundle=args.bundle,
            gallery=args.gallery,
            device=devices[0] if devices else args.device,
            devices=devices,
            threads=args.threads,
            k=args.k,
            seconds=args.seconds,
            images=args.images,
            texts=args.texts,
            batches=tuple(args.batch or (1, 8, 32)),
            rates=rates,
            workers=args.workers,
            starts=args.starts,
        ),
        tell,
    )
    keep_and_print(args, result, latency_text)
    return 0
