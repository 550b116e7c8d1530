"""`cir-bench systems`: every system trained alike: recall, parameters and the time of a query."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cir_bench.trainings import (
    add_training_arguments,
    alone,
    begin,
    by_part,
    columns_of,
    finished,
    measured_on,
    recall_of,
    trained,
    write_table,
)
from cir_infer.errors import TrainingError

if TYPE_CHECKING:
    from cir_export.training.configuration import TrainingConfig
from cir_infer.inputs.unknown_words import UNSAID

__all__ = ["EXAMPLE", "add_arguments", "run", "table"]

EXAMPLE = "cir-bench systems models/systems/config.toml --data data/scenes -o systems --threads 2"

SYSTEMS = {
    "image-only": "image only",
    "text-only": "text only",
    "late-fusion": "late fusion",
    "concatenation": "concatenation",
    "show-and-tell": "Show and Tell",
    "attribute-as-operator": "attribute as operator",
    "parameter-hashing": "parameter hashing",
    "relationship": "Relationship",
    "mrn": "MRN",
    "film": "FiLM",
    "tirg": "TIRG",
    "tirg-last-convolution": "TIRG, last convolution",
    "sac": "SAC",
    "val": "VAL",
    "cosmo": "CoSMo",
    "composeae": "ComposeAE",
    "maaf": "MAAF",
    "cirplant": "CIRPLANT",
    "clip4cir-sum": "CLIP4Cir, stage 1 (sum), small CLIP",
    "clip4cir-combiner": "CLIP4Cir, stage 2 (Combiner), small CLIP",
    "clip-artemis": "ARTEMIS' attentions over the small CLIP",
    "is-only": "ARTEMIS, IS only",
    "em-only": "ARTEMIS, EM only",
    "artemis": "ARTEMIS",
}
"""System -> its row in the table."""

_STAGE_1 = {"clip4cir-combiner": "clip4cir-sum", "clip-artemis": "clip4cir-sum"}
"""Systems that start from another's weights and train nothing of its trunk."""

_ROUNDS, _GALLERY = 40, 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_training_arguments(parser, SYSTEMS, "system is")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing; tabulate the trainings that are finished"
    )


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, then write recall.json and recall.md.

    Finished trainings are kept and an interrupted one continues, so the command may be given again.
    """
    begin(args, "cir-bench systems")
    with nullcontext() if args.table_only else alone(args.output):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    results = {}
    for system in args.systems or SYSTEMS:
        config = _config(args, system)
        folder = args.output / system
        end = finished(folder / "log.jsonl", config)
        if end is None and not args.table_only:
            end = trained(config, folder, args.device, _initial(args, system))
        if end is not None:
            results[system] = end
            if not args.json:
                print(f"{system}: {recall_of(end)}", flush=True)
    if not results:
        raise TrainingError(f"{args.output} holds no finished training")
    # Only what is in the table is timed, all in one run, so that the times can be compared.
    for system, milliseconds in _query_times({name: args.output / name for name in results}).items():
        results[system]["query_ms"] = milliseconds
    write_table(args, results, table(results))
    return 0


def _config(args: argparse.Namespace, system: str) -> TrainingConfig:
    from cir_export.training.configuration import read_config
    from cir_export.training.systems import model_for_system

    config = read_config(args.config)
    if args.data is not None:
        config = config.with_data(args.data)
    config = replace(config, model=model_for_system(config.model, system))
    if system in _STAGE_1:
        config = replace(config, training=replace(config.training, frozen_epochs=config.training.epochs))
    return config


def _initial(args: argparse.Namespace, system: str) -> list[Path]:
    """What a system starts from."""
    if system not in _STAGE_1:
        return []
    first: Path = args.output / _STAGE_1[system] / "model.pt"
    if not first.is_file():
        raise TrainingError(f"{system} starts from {_STAGE_1[system]}; train that first")
    return [first]


def _query_times(folders: dict[str, Path]) -> dict[str, float]:
    """Median milliseconds of one query through each system's bundle, on one core.

    From a decoded image and a text to the ten best of 5,000 rows. The systems take turns, so that whatever
    else the machine does falls on all of them.
    """
    queries = {system: _query(folder) for system, folder in folders.items()}
    times: dict[str, list[float]] = {system: [] for system in queries}
    for _ in range(_ROUNDS):
        for system, query in queries.items():
            start = time.perf_counter()
            query()
            times[system].append(1000 * (time.perf_counter() - start))
    return {system: round(float(np.median(values[5:])), 2) for system, values in times.items()}


def _query(folder: Path) -> Callable[[], object]:
    from cir_export.export import export_bundle
    from cir_export.model_file import load_model
    from cir_export.verification import draw_samples
    from cir_infer.engine import Engine
    from cir_infer.scoring import make_scorer
    from cir_infer.scoring.contract import Rows

    bundle = folder / "model.cir"
    if not bundle.is_file():
        trained = load_model(folder / "model.pt")
        export_bundle(trained, bundle, draw_samples(trained.image, trained.text, trained.tokenizer))
    engine = Engine(bundle, device="cpu", threads=1)
    rows = np.random.default_rng(0).standard_normal((_GALLERY, engine.dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scorer = make_scorer(Rows.of(rows))
    image = np.random.default_rng(1).integers(0, 256, (96, 96, 3), np.uint8)

    asked = ["make the small red cube blue"]

    def query() -> object:
        reference = engine.encode_references([image]) if engine.needs_reference else None
        text = engine.encode_texts(asked, together=UNSAID) if engine.needs_text else None
        return scorer.topk(engine.compose(reference, text), 10)

    return query


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: a row a system."""
    first = next(iter(results.values()))["test"]
    ks = columns_of(first)
    named = f"Protocol {first['protocol']}: " if "protocol" in first else ""  # logs had none at first
    lines = [
        f"{named}{measured_on(first)} One seed each, the same budget.",
        "",
        f"| system | {' | '.join(f'R@{k}' for k in ks)} | parameters | query, ms | CPU minutes of training |",
        f"|---|{'---|' * len(ks)}---|---|---|",
    ]
    for system, label in SYSTEMS.items():
        if system in results:
            end = results[system]
            recall = [f"{100 * end['test']['recall'][k]:.1f}" for k in ks]
            rest = [
                f"{end['parameters']:,}",
                f"{end['query_ms']:.1f}" if "query_ms" in end else "-",
                f"{end['cpu_seconds'] / 60:.1f}",
            ]
            lines.append(f"| {label} | {' | '.join(recall + rest)} |")
    lines += by_part(
        {label: results[system]["test"] for system, label in SYSTEMS.items() if system in results}
    )
    return "\n".join(lines) + "\n"
