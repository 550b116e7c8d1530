"""What ONNX Runtime does not survive: a graph that would end the process is refused before it runs."""

from __future__ import annotations

import numpy as np

from cir_infer.bundle.limits.products import PRODUCTS
from cir_infer.bundle.limits.values import Step

__all__ = ["check_survivable"]

_COUNTING = frozenset(
    (
        *PRODUCTS,
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "Resize",
        "Upsample",
    )
)
"""Operators that divide by the length of an axis, or walk along it without a look at it (1.32: Einsum and
InstanceNormalization crash, most others refuse)."""

_SIGNED = {3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64}
"""ONNX's numbers of whole numbers with a sign."""


def check_survivable(step: Step) -> None:
    """Refuse a step at which a process may crash.

    Raises:
        UnclearError: it is one.
    """
    if step.node.op in _COUNTING and any(value is not None and not value.count for value in step.inputs):
        step.refuse("it computes with a tensor of no elements")
    if step.node.op == "Div" and step.has(1) and (kind := _SIGNED.get(step.value(0).kind)) is not None:
        divisor, dividend = step.value(1).data, step.value(0).data
        # The least number by -1 is beyond the type, which is a trap of the processor, as zero is.
        if divisor is None or (divisor == 0).any():
            step.refuse("it divides whole numbers by what may be zero")
        if (divisor == -1).any() and (dividend is None or (dividend == np.iinfo(kind).min).any()):
            step.refuse("it divides whole numbers by -1")
