"""`cir-bench explain`: are explanations true, and what do they cost?"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_infer.console.common import print_json
from cir_infer.console.figures import counted, decimals
from cir_infer.console.tables import format_table
from cir_infer.errors import UsageError
from cir_infer.extras import require

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench explain data/scenes --model models/artemis-scenes/model.pt --bundle artemis.cir"

NAMES = {"shares": "shares (ours)", "grad-cam": "Grad-CAM", "occlusion": "occlusion", "chance": "chance"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("data", type=Path, help="folder of the data set of scenes")
    parser.add_argument("--model", required=True, help="the model in PyTorch, for Grad-CAM")
    parser.add_argument("--bundle", type=Path, required=True, help="what was exported from it")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--view", help="of the pictures (default: the last that the data set has)")
    parser.add_argument("--queries", type=int, default=300, metavar="N", help="default: 300")
    parser.add_argument(
        "--term", help="which term is explained (default: the last, explicit matching for ARTEMIS)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="processors (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Measure, then print a table or one JSON object."""
    if args.queries < 1 or args.threads < 1:
        raise UsageError("--queries and --threads are at least 1")
    require("cir-bench explain", "torch")
    import torch

    from cir_bench.explaining.cases import cases_of
    from cir_bench.explaining.measurement import largest_gap, measure
    from cir_bench.explaining.methods import grad_cam, occlusion, of_shares
    from cir_bench.machine import stamp
    from cir_eval.datasets.scenes.reader import ScenesDataset
    from cir_export.checkpoints import load_trained
    from cir_infer import Engine

    torch.set_num_threads(args.threads)
    data = ScenesDataset.open(args.data)
    view = args.view or data.views[-1]
    cases = cases_of(data.split(args.split), view, args.queries)
    if not cases:
        raise UsageError(f"no query of {args.data} adds or changes anything")
    trained = load_trained(args.model)
    with Engine(args.bundle, device="cpu", threads=args.threads) as engine:
        terms = engine.manifest.terms
        if args.term is not None and args.term not in terms:
            raise UsageError(f"--term {args.term}: this system's terms are {', '.join(terms)}")
        term = terms.index(args.term) if args.term else len(terms) - 1
        methods = {
            "shares": of_shares(engine),
            "grad-cam": grad_cam(trained.model),
            "occlusion": occlusion(engine),
        }
        found = measure(engine, cases, methods, term, not args.json)
        gap = largest_gap(engine, cases)
        ratio = _ratio(args, engine, cases)
    result: dict[str, Any] = {
        "kind": "explain",
        **stamp(),
        "term": terms[term],
        "queries": len(cases),
        "threads": args.threads,
        "methods": found,
        "largest_gap": gap,
        "query": ratio,
    }
    if args.json:
        print_json(result)
        return 0
    rows = [
        [
            NAMES[name],
            f"{one['largest_in_the_cell']:.1%}",
            f"{one['largest_growth_in_the_cell']:.1%}",
            *(decimals(one["term_left"]["0.0"] - one["term_left"][part], 4) for part in ("0.05", "0.2")),
            "" if one["milliseconds"] is None else f"{one['milliseconds']:.1f}",
        ]
        for name, one in found.items()
    ]
    header = [
        "",
        "largest in its cell",
        "growth in its cell",
        "lost with 5%",
        "lost with 20%",
        "ms a picture",
    ]
    print(f"{terms[term].replace('_', ' ')}, {counted(len(cases), 'query', 'queries')}\n")
    print(format_table(header, rows, right=range(1, 6)))
    print(f"\nlargest |sum of shares - term|: {gap:.1e}")
    print(f"a query on a bundle that explains, to one on a bundle without: {ratio['median']:.3f}")
    return 0


def _ratio(args: argparse.Namespace, engine: Any, cases: Any) -> dict[str, float]:
    from cir_bench.explaining.measurement import query_ratio
    from cir_infer import Engine, Gallery, Searcher
    from cir_infer.bundle import Bundle, write_bundle

    bundle = Bundle(args.bundle)
    explain = bundle.manifest.explain
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        members = bundle.contents(
            name for name in bundle.manifest.members if explain is None or name != explain.file
        )
        write_bundle(folder / "without.cir", replace(bundle.manifest, explain=None), members)
        with (
            Gallery.create(folder / "scenes.gallery", engine) as gallery,
            Engine(folder / "without.cir", device="cpu", threads=args.threads) as without,
        ):
            gallery.add([case.target for case in cases], ids=[str(n) for n in range(len(cases))])
            return query_ratio(Searcher(engine, gallery), Searcher(without, gallery), cases)
