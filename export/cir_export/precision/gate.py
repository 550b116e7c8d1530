"""What a precision may cost, and the refusal of one that costs more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cir_export.precision.blame import LayerError
from cir_export.precision.fidelity import Fidelity
from cir_export.precision.graphs import PrecisionName
from cir_export.precision.layers import shortest_names
from cir_export.precision.recall import RecallDrift
from cir_infer.errors import ExportError

__all__ = ["ALLOWED_LOSS", "LIMITS", "Limits", "PrecisionError", "objections"]

ALLOWED_LOSS = 0.5
"""Points of R@10 that may be lost on a labelled set."""

_NAMED = 3

_NO_CHANGE = 0.999995
"""A cosine from which on five digits say 1."""

_NEAR_TIES = (
    "Nothing changes a cosine by 0.00001, so the embeddings lie as close together as that, and their order "
    "says little"
)
_TOGETHER = "No layer alone changes a cosine by 0.00001; it is all of them together"


@dataclass(frozen=True)
class Limits:
    """What passes where there is no labelled set: the smallest cosine and agreement."""

    cosine: float
    agreement: float


LIMITS: dict[PrecisionName, Limits] = {
    "bfloat16": Limits(0.999, 0.95),
    "float16": Limits(0.9999, 0.99),
    "int8": Limits(0.995, 0.9),
}
"""Float16's and bfloat16's are what their rounding leaves of a sound model. Int8's leave room for a sound
one, whose worst cosine is 0.999 and more (docs/precision.md), and none for a layer that its ranges do not
fit."""


class PrecisionError(ExportError):
    """A precision loses more than is allowed.

    Attributes:
        fidelity: the measurement.
        drift: recall before and after, where there was a labelled set.
        layers: every layer that was lowered, with what it alone costs, the worst first.
    """

    def __init__(
        self,
        precision: PrecisionName,
        reasons: Sequence[str],
        fidelity: Fidelity,
        drift: RecallDrift | None,
        layers: Sequence[LayerError],
    ) -> None:
        self.fidelity, self.drift, self.layers = fidelity, drift, tuple(layers)
        overflowing = [error.layer for error in self.layers if error.overflows]
        worst = self.layers[:_NAMED]
        # All that overflow, or keeping the named ones would only meet the next. A layer may be in two
        # graphs, or at work twice in one: a name keeps it everywhere.
        names = shortest_names(
            overflowing or [error.layer for error in worst], [error.layer for error in self.layers]
        )
        hurt = (
            [f"{name} (overflows)" for name in dict.fromkeys(overflowing)]
            if overflowing
            else [f"{error.layer} (cosine {error.cosine_worst:.5f})" for error in worst]
        )
        blamed = bool(overflowing) or any(error.cosine_worst < _NO_CHANGE for error in worst)
        # Cosines of 1 and another order: the embeddings themselves lie as close together as that.
        whole = (
            fidelity.cosine_worst or 0.0,
            1.0 if fidelity.text_cosine_worst is None else fidelity.text_cosine_worst,
        )
        unblamed = _NEAR_TIES if min(whole) >= _NO_CHANGE else _TOGETHER
        said = f"The layers that hurt most, each alone: {', '.join(hurt)}" if blamed else unblamed
        # OpenVINO decides for itself which layers of a bfloat16 graph are float32.
        remedies = (
            [f"keep them in float32 (--keep-float32 {' '.join(names)})"]
            if blamed and precision != "bfloat16"
            else []
        )
        if precision == "int8":
            remedies.append("calibrate on more images like those of your gallery")
        remedies.append(
            "allow more (--allow-loss)" if drift else "judge by recall (--labelled DATA --protocol NAME)"
        )
        super().__init__(
            f"{precision} loses too much and no bundle was written: {'; '.join(reasons)}. {said}; "
            f"{', or '.join(remedies)}"
        )


def objections(
    precision: PrecisionName, fidelity: Fidelity, drift: RecallDrift | None, allowed_loss: float
) -> list[str]:
    """Why a precision is refused; nothing where it passes.

    Recall decides where it was measured; cosines and agreement stand in for it elsewhere. Embeddings that
    are not finite never pass.
    """
    if not fidelity.finite:
        return [f"embeddings of {fidelity.source} are not finite (a value exceeds what {precision} can hold)"]
    if drift is not None:
        if drift.loss <= allowed_loss:
            return []
        return [
            f"{drift.metric} on {drift.protocol} ({drift.split}) falls from {drift.before:.2f} to "
            f"{drift.after:.2f} and {allowed_loss:g} points are allowed"
        ]
    limits = LIMITS[precision]
    measured = (
        ("the worst cosine of an image's embedding", fidelity.cosine_worst, limits.cosine),
        ("the worst cosine of a text's embedding", fidelity.text_cosine_worst, limits.cosine),
        ("the agreement of the first ten", fidelity.top10_agreement, limits.agreement),
    )
    return [
        f"{what} is {found:.5f} and {limit:g} is asked"
        for what, found, limit in measured
        if found is not None and not found >= limit
    ]
