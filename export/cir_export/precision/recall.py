"""What another precision costs in recall on a labelled data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cir_eval.drift import drift_between
from cir_eval.evaluation import Evaluated, Options, evaluate
from cir_eval.protocols.contract import Part, Protocol
from cir_infer.engine import Engine
from cir_infer.errors import UsageError, shown

__all__ = ["Labelled", "RecallDrift", "evaluated", "measure_drift"]

_JUDGED = "R@10"


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled data set under a protocol.

    Attributes:
        protocol: whose way to evaluate.
        split: one of its splits.
        parts: what it holds.
    """

    protocol: Protocol
    split: str
    parts: tuple[Part, ...]

    @classmethod
    def open(cls, root: Path, protocol: Protocol, split: str | None) -> Labelled:
        """Reads a data set.

        Args:
            root: its folder.
            protocol: the protocol.
            split: None takes the one that the protocol's authors report.

        Raises:
            UsageError: no such split, or one without published answers.
            DatasetError: the data set is not in its published layout.
        """
        split = split or protocol.splits[0]
        if split not in protocol.splits:
            raise UsageError(
                f"{protocol.name} has no split {shown(split)}; expected one of {', '.join(protocol.splits)}"
            )
        parts = tuple(protocol.load(root, split))
        if not parts or not all(part.answered for part in parts):
            raise UsageError(
                f"{protocol.name} publishes no answers for {split}; choose another of "
                f"{', '.join(protocol.splits)} with --split"
            )
        return cls(protocol, split, parts)


@dataclass(frozen=True)
class RecallDrift:
    """Recall of both bundles.

    Attributes:
        protocol: its name.
        split: the split.
        queries: of all parts.
        metric: what is judged: R@10, or what the protocol's authors select models by if they have none.
        before: the metric in float32, per cent, mean over parts.
        after: the metric of the lowered bundle.
        drift: everything else that changed, see `cir_eval.drift`.
    """

    protocol: str
    split: str
    queries: int
    metric: str
    before: float
    after: float
    drift: dict[str, Any]

    @property
    def loss(self) -> float:
        """Points that the lowered bundle loses; negative where it gains."""
        return self.before - self.after

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {
            "protocol": self.protocol,
            "split": self.split,
            "queries": self.queries,
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            **self.drift,
        }


def evaluated(engine: Engine, labelled: Labelled) -> list[Evaluated]:
    """Every part under the protocol."""
    return [evaluate(engine, labelled.protocol, part, Options()) for part in labelled.parts]


def measure_drift(before: list[Evaluated], after: list[Evaluated], labelled: Labelled) -> RecallDrift:
    """Compares what `evaluated` gave for two bundles."""
    protocol = labelled.protocol
    names = (_JUDGED,) if _JUDGED in before[0].metrics else protocol.measure
    return RecallDrift(
        protocol.name,
        labelled.split,
        sum(len(part.queries) for part in labelled.parts),
        " + ".join(names),
        _mean(before, names),
        _mean(after, names),
        drift_between(before, after),
    )


def _mean(parts: Sequence[Evaluated], names: Sequence[str]) -> float:
    return float(np.mean([part.metrics[name] for part in parts for name in names]))
