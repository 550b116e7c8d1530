"""`cir-bench accuracy`: recall of a bundle on a data set under a named protocol."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from cir_bench.commands.kept import add_output, keep_and_print
from cir_bench.commands.numbers import at_least_one
from cir_infer.console.common import print_json
from cir_infer.errors import UsageError, shown

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = """cir-bench accuracy artemis.cir /data/fashionIQ --protocol fashioniq/artemis
  cir-bench accuracy small.cir /data/scenes --protocol scenes --against artemis.cir --failures worst.html
  cir-bench accuracy combiner.cir /data/cirr --protocol cirr/clip4cir --split test1 --submission upload/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="the bundle (.cir)")
    parser.add_argument("root", metavar="DATA", type=Path, nargs="?", help="the data set's folder")
    parser.add_argument("--protocol", metavar="NAME", help="DATASET or DATASET/REPOSITORY, see --protocols")
    parser.add_argument("--protocols", action="store_true", help="list the protocols and stop")
    parser.add_argument("--split", metavar="NAME", help="default: the one that the authors report")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or tensorrt (default auto)")
    parser.add_argument("--threads", type=at_least_one, metavar="N", help="CPU threads inside an operator")
    parser.add_argument("--scorer", default="auto", help="see cir_infer.scoring.make_scorer (default auto)")
    parser.add_argument(
        "--row-type",
        default="float32",
        help="how rows are stored: float32, float16 or int8 (default float32)",
    )
    parser.add_argument(
        "--batch-size", type=at_least_one, default=32, metavar="N", help="images at a time (default 32)"
    )
    parser.add_argument(
        "--authors-batch",
        type=at_least_one,
        metavar="N",
        help="texts in batches of N whose padding the LSTM reads, as naver/artemis evaluates (its N: 32)",
    )
    parser.add_argument(
        "--against", type=Path, metavar="BUNDLE", help="the same model in float32: report the drift"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="BUNDLE",
        help="bundles of further trainings of the same model: mean and deviation over all",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="keep embeddings here; a stopped run goes on"
    )
    parser.add_argument(
        "--no-alone",
        action="store_true",
        help="do not also rank by the text alone and the picture alone (composition gain)",
    )
    parser.add_argument("--submission", type=Path, metavar="DIR", help="write the test server's files here")
    parser.add_argument("--failures", type=Path, metavar="HTML", help="write a page of pictures of failures")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from cir_bench.accuracy.failures import failures_page
    from cir_bench.accuracy.measurement import measure_accuracy, over_runs
    from cir_bench.report.text import accuracy_text
    from cir_bench.results import ensure_writable, write_text
    from cir_eval.evaluation import Options
    from cir_eval.protocols import protocol
    from cir_infer.engine import Engine

    if args.protocols:
        return _list_protocols(args.json)
    if args.bundle is None or args.root is None or args.protocol is None:
        raise UsageError("expected BUNDLE, DATA and --protocol NAME; --protocols lists the names")
    places = [os.path.realpath(path) for path in (args.bundle, *args.runs)]
    twice = next((path for number, path in enumerate(places) if path in places[:number]), None)
    if args.runs and twice is not None:
        raise UsageError(f"{shown(twice)} is named twice; BUNDLE and --runs are a training each")
    for written in (args.output, args.failures):
        ensure_writable(written, [args.bundle, args.against, *args.runs])
    options = Options(
        args.row_type,
        args.scorer,
        args.batch_size,
        args.authors_batch,
        args.resume,
        alone=not args.no_alone,
    )
    measured = measure_accuracy(
        Engine(args.bundle, args.device, args.threads),
        protocol(args.protocol),
        args.root,
        args.split,
        options,
        None if args.against is None else Engine(args.against, args.device, args.threads),
        args.submission,
    )
    if args.runs:
        recall = replace(options, alone=False)
        others = [
            measure_accuracy(
                Engine(path, args.device, args.threads),
                protocol(args.protocol),
                args.root,
                args.split,
                recall,
            ).result
            for path in args.runs
        ]
        measured.result["runs"] = over_runs([measured.result, *others])
    if args.failures is not None:
        system, split = measured.result["bundle"]["system"], measured.result["protocol"]["split"]
        title = f"{system} on {args.protocol} ({split}): where it fails"
        write_text(args.failures, failures_page(measured.evaluated, title))
    keep_and_print(args, measured.result, accuracy_text)
    if not args.json:
        for path in (*measured.submissions, *([args.failures] if args.failures else [])):
            print(f"wrote {path}")
    return 0


def _list_protocols(as_json: bool) -> int:
    from cir_eval.protocols import protocol, protocol_names

    found = {name: protocol(name) for name in protocol_names()}
    if as_json:
        print_json({name: {"source": p.source, "splits": list(p.splits)} for name, p in found.items()})
        return 0
    for name, known in found.items():
        print(f"{name:<22} {known.source}")
    return 0
