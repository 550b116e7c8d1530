"""A model without its large weights, and with them again.

ONNX Runtime copies a model's weights twice as it reads it. Weights that are initialisers of the session it
takes as they are, so a kept graph is the model without them, and they lie beside it. As it is kept it names
no file; what ONNX Runtime is given says of each weight that it is elsewhere, and comes with each of them. It
wants a file to be there, and does not read it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from cir_infer.bundle.continuation import continued
from cir_infer.bundle.initializers import (
    DIMS,
    GRAPH,
    INITIALIZER,
    KIND,
    NAME,
    RAW,
    changed,
    elsewhere,
)
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.bundle.wire import field, fields_of, integers_of, text_of

__all__ = ["Weight", "with_weights", "without_weights"]

_LARGE = 4096
"""Bytes from which on it is worth it."""


class Weight(NamedTuple):
    """A weight that was taken out.

    Attributes:
        name: in the graph.
        kind: ONNX's number of its type.
        shape: of it.
        data: its numbers, as they are stored.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: memoryview


def without_weights(model: bytes) -> tuple[bytes, list[Weight]]:
    """A model without its large weights, and these.

    Raises:
        BundleError, ValueError, IndexError: it is no ONNX model.
    """
    weights: list[Weight] = []

    def kept(tensor: memoryview) -> memoryview | None:
        weight = _weight(tensor) if len(tensor) >= _LARGE else None
        if weight is None:
            return tensor
        weights.append(weight)
        return None

    return changed(model, kept), weights


def _weight(tensor: memoryview) -> Weight | None:
    found: dict[int, Any] = {}
    shape: list[int] = []
    for number, value in fields_of(tensor):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else integers_of(value)
        else:
            found[number] = value
    data, kind = found.get(RAW), found.get(KIND)
    if set(found) - {KIND, NAME, RAW} or data is None or kind not in NUMBERS:
        return None
    if len(data) != math.prod(shape) * NUMBERS[kind].itemsize:
        return None
    return Weight(text_of(found[NAME]), kind, tuple(shape), data)


def with_weights(model: bytes, weights: Sequence[tuple[str, npt.NDArray[Any]]]) -> Model:
    """The model with weights that are said to be in `os.devnull`, and are handed to what runs it.

    Raises:
        BundleError: it is no ONNX model.
    """
    kinds = {dtype: kind for kind, dtype in NUMBERS.items()}
    said = {"location": Path(os.devnull).name, "offset": "0"}
    graph = b"".join(
        field(
            INITIALIZER,
            elsewhere(name, kinds[array.dtype], array.shape, {**said, "length": str(array.nbytes)}),
        )
        for name, array in weights
    )
    return Model(continued(model, field(GRAPH, graph)), dict(weights))
