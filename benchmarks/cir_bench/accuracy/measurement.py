"""One accuracy measurement, whole: every part of a split, the authors' measure, drift, submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.accuracy.submission import write_submission
from cir_bench.machine import stamp
from cir_eval.drift import drift_between
from cir_eval.evaluation import Evaluated, Options, evaluate
from cir_eval.metrics import NEGATIVES, measure_of, metrics_of, paraphrases, spread_of
from cir_eval.protocols.contract import Part, Protocol
from cir_infer.engine import Engine
from cir_infer.errors import DatasetError, UsageError, shown

__all__ = ["Measured", "measure_accuracy", "over_runs"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        result: as plain values.
        evaluated: the parts, with their rankings.
        submissions: files written for a test server.
    """

    result: dict[str, Any]
    evaluated: tuple[Evaluated, ...]
    submissions: tuple[Path, ...]


def measure_accuracy(
    engine: Engine,
    protocol: Protocol,
    root: Path,
    split: str | None = None,
    options: Options | None = None,
    against: Engine | None = None,
    submission: Path | None = None,
) -> Measured:
    """Evaluate a bundle on a data set.

    Args:
        engine: the bundle on its device.
        protocol: whose way to evaluate.
        root: the data set's folder.
        split: one of the protocol's; None takes its first.
        options: how to evaluate.
        against: the same model in float32; its recall is measured too, with float32 rows, and the result
            says what changed.
        submission: folder for the test server's files.

    Raises:
        UsageError: the protocol has no such split, none of the asked files can be made of it, or a bundle
            does not read the padding of the authors' batches.
        DatasetError: the data set is not in its published layout, or lacks the answers of some parts.
    """
    options = options or Options()
    if options.authors_batch is not None:
        for opened in (engine, against):
            if opened is not None:
                opened.require_padding()
    split = split or protocol.splits[0]
    if split not in protocol.splits:
        raise UsageError(
            f"{protocol.name} has no split {shown(split)}; expected one of {', '.join(protocol.splits)}"
        )
    if submission is not None and protocol.submission is None:
        raise UsageError(f"{protocol.name} has no test server; leave --submission out")
    parts = protocol.load(root, split)
    _check_answers(protocol, split, parts)
    evaluated = _evaluate_all(engine, protocol, parts, split, options)
    submissions: list[Path] = []
    if submission is not None:
        for done in evaluated:
            rankings = [ranking[ranking >= 0] for ranking in done.rankings]
            submissions += write_submission(submission, protocol, done.part, rankings, done.members)
    result: dict[str, Any] = {
        "kind": "accuracy",
        **stamp(),
        "bundle": _describe(engine),
        "protocol": {"name": protocol.name, "source": protocol.source, "split": split},
        "settings": {
            "row_type": options.row_type,
            "authors_batch": options.authors_batch,
        },
        "parts": [
            {
                "name": done.part.name,
                "rows": len(done.part.ids),
                "queries": len(done.part.queries),
                "metrics": done.metrics,
                **_alone([done]),
            }
            for done in evaluated
        ],
        **_summary(protocol, evaluated),
        "doubts": _doubts(evaluated),
    }
    if against is not None:
        plain = replace(options, row_type="float32")
        baseline = _evaluate_all(against, protocol, parts, split, plain)
        result["drift"] = {"against": _describe(against), **drift_between(baseline, evaluated)}
    return Measured(result, evaluated, tuple(submissions))


def over_runs(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the sample over several trainings of one model.

    Raises:
        UsageError: they are not of one system, or the split has no published answers.
    """
    systems = sorted({result["bundle"]["system"] for result in results})
    if len(systems) > 1:
        raise UsageError(f"--runs: bundles of {' and '.join(systems)}; expected trainings of one system")
    if any("mean" not in result for result in results):
        raise UsageError("--runs: no answers are published for this split, so there is nothing to average")
    # Of a ranking that is not made whole, one run may know every rank and another may not.
    known = [name for name in results[0]["mean"] if all(name in result["mean"] for result in results)]
    values = {name: [result["mean"][name] for result in results] for name in known}
    return {
        "bundles": [result["bundle"]["fingerprint"] for result in results],
        "mean": {name: float(np.mean(some)) for name, some in values.items()},
        "deviation": {name: float(np.std(some, ddof=1)) for name, some in values.items()},
    }


def _check_answers(protocol: Protocol, split: str, parts: Sequence[Part]) -> None:
    """Assert that all parts have answers or none: a mean over some would pass for that of all."""
    given = [part.name for part in parts if part.queries and part.answered]
    absent = [part.name for part in parts if not part.answered]
    if given and absent:
        raise DatasetError(
            f"{protocol.name}, split {split}: {shown(given[0])} has published answers and {shown(absent[0])} "
            "has none; complete the annotations"
        )


def _evaluate_all(
    engine: Engine, protocol: Protocol, parts: Sequence[Part], split: str, options: Options
) -> tuple[Evaluated, ...]:
    if options.folder is not None:
        name = protocol.name.split("/")[0]
        options = replace(options, folder=options.folder / f"{name}-{split}-{engine.fingerprint[:12]}")
    return tuple(evaluate(engine, protocol, part, options) for part in parts)


def _summary(protocol: Protocol, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Mean over parts, over all queries alike, and the authors' measure; nothing without answers."""
    judged = [done for done in evaluated if done.outcomes]
    if not judged:
        return {}
    found = [done.metrics for done in judged]
    # An aspect has the mean of the parts that ask about it; ranks that one part does not know have none.
    names = dict.fromkeys(name for metrics in found for name in metrics)
    whole = [name for name in names if not name.endswith("_rank") or all(name in m for m in found)]
    return {
        "mean": {name: float(np.mean([m[name] for m in found if name in m])) for name in whole},
        "pooled": metrics_of([outcome for done in judged for outcome in done.outcomes]),
        **_alone(judged),
        **_paraphrased(judged),
        "measure": {
            "metrics": list(protocol.measure),
            "value": measure_of(protocol, [done.metrics for done in judged]),
        },
    }


def _alone(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """What one half of each query is worth by itself, and what the composition adds to the better half.

    The gain is of metrics in which larger is better. Over all queries of the parts alike.
    """
    if not all(done.alone for done in evaluated):
        return {}
    whole = metrics_of([outcome for done in evaluated for outcome in done.outcomes])
    halves = {
        half: metrics_of([outcome for done in evaluated for outcome in done.alone[half]])
        for half in ("text", "image")
    }
    shares = [name for name in whole if not name.endswith("_rank")]
    better = [name for name in shares if not name.startswith(NEGATIVES)]
    return {
        "alone": {half: {name: found[name] for name in shares} for half, found in halves.items()},
        "composition_gain": {
            name: whole[name] - max(found[name] for found in halves.values()) for name in better
        },
    }


def _paraphrased(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """What the wording of a query decides, where a data set has several for one; over all parts alike."""
    groups = [
        [done.outcomes[number] for number in group]
        for done in evaluated
        for group in paraphrases(done.part.queries)
    ]
    if not groups:
        return {}
    about = {"groups": len(groups), "queries": sum(map(len, groups))}
    return {"paraphrases": {**about, "spread": spread_of(groups)}}


def _doubts(evaluated: Sequence[Evaluated]) -> list[str]:
    """Few queries make a recall uncertain: its standard error is sqrt(p (1 - p) / n)."""
    return [
        f"{done.part.name}: {len(done.outcomes)} queries; a recall of 50% is uncertain by "
        f"{50 / len(done.outcomes) ** 0.5:.1f} points (one standard error)"
        for done in evaluated
        if 0 < len(done.outcomes) < 1000
    ]


def _describe(engine: Engine) -> dict[str, Any]:
    about = engine.describe()
    return {
        **{name: about[name] for name in ("system", "precision", "fingerprint", "dimension", "device")},
        "library": about["backend"].get("library"),
    }
