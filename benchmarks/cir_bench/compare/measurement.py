"""Ours against the alternatives: equal answers first, then times in turn, then ratios with their spread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cir_bench import trust
from cir_bench.compare.alternatives import Alternative, Question, alternatives
from cir_bench.compare.lowered import lowered_ways, passing
from cir_bench.machine import stamp
from cir_bench.sensors import Sensors, summarise_readings
from cir_bench.timing import interleave, ratio, summarise
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import FeatureInput
from cir_infer.engine import Engine
from cir_infer.errors import ScoringError, UsageError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.inputs.unknown_words import UNSAID
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.reference import ReferenceScorer

if TYPE_CHECKING:
    from cir_export.model_file import TrainedModel

__all__ = ["Settings", "measure_comparison"]

_QUESTIONS = 8
_TIE = 2e-5
_SETTLE = 0.05
"""Seconds: threads of PyTorch and of OpenVINO spin after a call, and have the cores of the next one else."""


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        rows: gallery rows, random directions of unit length.
        k: hits a query.
        seconds: how long to time each of the three comparisons, and
        rounds: how many rounds at least: one of all alternatives on a large model takes seconds.
        device: as for `Engine`.
        threads: CPU threads for all alike; None takes every core.
        compiled: also torch.compile.
    """

    rows: int = 15_000
    k: int = 50
    seconds: float = 10.0
    device: str = "cpu"
    threads: int | None = None
    compiled: bool = True
    rounds: int = 20


def measure_comparison(
    trained: TrainedModel, settings: Settings, tell: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Compare on one model.

    Args:
        trained: the model; it is exported for ours.
        settings: how.
        tell: called with what is being done.

    Raises:
        ScoringError: an alternative answers otherwise than the definition; nothing is timed then.
        ExportError: the model cannot be exported.
        UsageError: its rows are several vectors, which the alternatives do not score.
    """
    several = trained.model.tokens_per_item
    if several > 1:
        raise UsageError(
            f"a row of {trained.model.system!r} is {several} vectors, and the comparison scores rows of one; "
            f"cir-bench scoring --tokens {several} compares scoring alone"
        )
    from cir_export.export import export_bundle
    from cir_export.verification import draw_samples

    head = stamp()
    threads = settings.threads or int(head["machine"]["cpu"]["cores"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compared.cir"
        samples = draw_samples(trained.image, trained.text, trained.tokenizer)
        tell("exporting the model")
        export_bundle(trained, path, samples)
        engine = Engine(path, settings.device, threads)
        questions = _questions(engine, Bundle(path), samples.images, samples.texts)
        random = np.random.default_rng(0)
        rows = random.standard_normal((settings.rows, engine.dimension)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        tell("opening the alternatives")
        every = alternatives(engine, trained, rows, settings.k, settings.compiled, threads)
        if engine.device == "cpu" and engine.needs_reference:
            every += lowered_ways(engine, samples.images, Path(folder), rows, settings.k)
    ways = [way for way in every if way.precision == "float32"]
    tell("verifying")
    _verify(engine, rows, questions, ways)
    lowered, left_out = passing(ways[0], [way for way in every if way.precision != "float32"], questions)
    ways += lowered

    names = ", ".join(way.name for way in ways)
    how_long = f"{settings.seconds:g} s and {settings.rounds} rounds each"
    tell(f"timing {names}: queries, encoders, scoring, {how_long}")
    with Sensors() as sensors:
        compared = {
            what: interleave(calls, seconds=settings.seconds, at_least=settings.rounds, settle=_SETTLE)
            for what, calls in (
                (
                    "query: prepared image and text to rows",
                    {way.name: _in_turn(way.answer, questions) for way in ways},
                ),
                ("image encoder", {way.name: _in_turn(way.encode, questions) for way in ways}),
                ("scoring and top-k", {way.name: way.score for way in ways if way.score is not None}),
            )
        }
    readings = summarise_readings(sensors.readings)
    ours = ways[0].name
    return {
        "kind": "compare",
        **head,
        "bundle": {
            key: engine.describe()[key] for key in ("system", "precision", "device", "image", "backend")
        },
        "settings": {"rows": settings.rows, "k": settings.k, "threads": threads},
        "ours": ours,
        "precisions": {way.name: way.precision for way in ways},
        "left_out": left_out,
        "verified": f"{len(questions)} queries, the first {settings.k} rows of each alternative",
        "comparisons": {
            name: {
                way: {**summarise(taken[way]), "times_ours": ratio(taken[way], taken[ours])} for way in taken
            }
            for name, taken in compared.items()
        },
        "sensors": readings,
        "doubts": trust.doubts_about_machine(readings),
    }


def _questions(engine: Engine, bundle: Bundle, images: Sequence[Any], texts: Sequence[Any]) -> list[Question]:
    spec = engine.manifest.image
    reader = None if engine.manifest.text is None else TextReader(bundle.tokenizer(), engine.manifest.text)
    plain = [text for text in texts if isinstance(text, str)][:_QUESTIONS]
    questions = []
    for number, text in enumerate(plain):
        image = images[number % len(images)]
        prepared = image if isinstance(spec, FeatureInput) else preprocess(image, spec)
        ids = np.zeros((1, 1), np.int32) if reader is None else reader.read([text], UNSAID).ids
        lengths = np.array([ids.shape[1]], np.int64)
        questions.append(Question(np.array(prepared)[None], text, ids.astype(np.int64), lengths))
    return questions


def _in_turn(call: Any, questions: Sequence[Question]) -> Any:
    """A call without arguments that asks the questions one after the other."""
    state = {"next": 0}

    def ask() -> None:
        call(questions[state["next"] % len(questions)])
        state["next"] += 1

    return ask


def _verify(
    engine: Engine, rows: npt.NDArray[np.float32], questions: Sequence[Question], ways: Sequence[Alternative]
) -> None:
    """Every alternative ranks as the float64 definition does, but for scores that are equal in float32."""
    definition = ReferenceScorer(Rows.of(rows))
    for question in questions:
        reference = engine.encode_prepared_references(question.image) if engine.needs_reference else None
        text = engine.encode_texts([question.text], together=UNSAID) if engine.needs_text else None
        every = definition.topk(engine.compose(reference, text), len(rows))
        score_of = np.empty(len(rows))
        score_of[every.rows[0]] = every.scores[0]
        for way in ways:
            found = way.answer(question)
            wanted = every.scores[0][: len(found)]
            error = float(np.abs(score_of[found] - wanted).max())
            if len(set(found.tolist())) != len(found) or not error <= _TIE:
                raise ScoringError(
                    f"{way.name} does not rank as the definition does (a score is off by {error:.1e}, "
                    f"at most {_TIE:.0e} is accepted); nothing was timed"
                )
