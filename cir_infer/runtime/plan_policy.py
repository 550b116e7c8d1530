"""What to do where a TensorRT plan is missing, and what plans must serve."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cir_infer.errors import DeviceError
from cir_infer.inputs.arguments import checked_word

__all__ = ["MISSING_PLAN", "PlanPolicy", "PlanUnavailableError", "missing_plan"]

MISSING_PLAN = ("build", "onnxruntime", "refuse")


class PlanUnavailableError(DeviceError):
    """There is no plan for this GPU and this version of TensorRT, and none may be built now."""


@dataclass(frozen=True)
class PlanPolicy:
    """How plans are chosen.

    Attributes:
        missing: "build" builds a plan that is missing, damaged or of another GPU or version, which takes
            minutes; "onnxruntime" runs all graphs on ONNX Runtime instead; "refuse" is an error.
        precision: the bundle's.
        int8_form: the bundle's, see `Manifest.int8_form`.
        tokens: the most tokens of a text.
    """

    missing: str = "build"
    precision: str = "float32"
    int8_form: str | None = None
    tokens: int = 512


def missing_plan(chosen: str | None) -> str:
    """The policy: an argument, else $CIR_MISSING_PLAN, else "build".

    Raises:
        UsageError: an unknown word.
    """
    word = chosen if chosen is not None else os.environ.get("CIR_MISSING_PLAN", "build")
    return checked_word("missing_plan (or CIR_MISSING_PLAN)", word, MISSING_PLAN)
