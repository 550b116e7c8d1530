"""A model without its large weights, and with them again.

ONNX Runtime copies a model's weights twice as it reads it. Weights that are handed to it as arrays it takes
as they are, so a kept graph is the model without them, and they lie beside it. As it is kept it names no
file; what ONNX Runtime is given says of each weight that it is elsewhere, and comes with each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.continuation import continued
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import model_fields
from cir_infer.bundle.wire import field, fields_of

__all__ = ["TYPES", "Weight", "with_weights", "without_weights"]

TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}
"""Of weights that are taken out, by ONNX's numbers."""

_LARGE = 4096
"""Bytes from which on it is worth it."""

_GRAPH, _INITIALIZER = 7, 5
_DIMENSIONS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14


class Weight(NamedTuple):
    """A weight that was taken out.

    Attributes:
        name: in the graph.
        kind: a key of `TYPES`.
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
    fields: list[bytes] = []
    for number, value in model_fields(model):
        if number == _GRAPH:
            value = b"".join(_kept(inner, content, weights) for inner, content in fields_of(value))
        fields.append(field(number, value))
    return b"".join(fields), weights


def _kept(number: int, value: Any, weights: list[Weight]) -> bytes:
    """A field of a graph; empty where it was a large weight, which is added to the list."""
    if number == _INITIALIZER and len(value) >= _LARGE:
        weight = _weight(value)
        if weight is not None:
            weights.append(weight)
            return b""
    return field(number, value)


def _weight(tensor: memoryview) -> Weight | None:
    found: dict[int, Any] = {}
    shape: list[int] = []
    for number, value in fields_of(tensor):
        if number == _DIMENSIONS:
            shape += [value] if isinstance(value, int) else _integers(value)
        else:
            found[number] = value
    data, kind = found.get(_RAW), found.get(_TYPE)
    if set(found) - {_TYPE, _NAME, _RAW} or data is None or kind not in TYPES:
        return None
    if len(data) != math.prod(shape) * TYPES[kind].itemsize:
        return None
    return Weight(bytes(found[_NAME]).decode(), kind, tuple(shape), data)


def _integers(packed: memoryview) -> list[int]:
    """Numbers that stand one behind the other. As fields of number 0 they would have keys before them."""
    numbers, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers


def with_weights(model: bytes, weights: Sequence[tuple[str, npt.NDArray[Any]]]) -> Model:
    """The model with weights that are said to be elsewhere, and are handed to what runs it.

    Raises:
        BundleError: it is no ONNX model.
    """
    kinds = {dtype: kind for kind, dtype in TYPES.items()}
    graph = b"".join(
        field(_INITIALIZER, _elsewhere(name, kinds[array.dtype], array)) for name, array in weights
    )
    return Model(continued(model, field(_GRAPH, graph)), dict(weights))


def _elsewhere(name: str, kind: int, array: npt.NDArray[Any]) -> bytes:
    entries = {"location": "kept", "offset": "0", "length": str(array.nbytes)}
    return b"".join(
        (
            *(field(_DIMENSIONS, length) for length in array.shape),
            field(_TYPE, kind),
            field(_NAME, name.encode()),
            *(
                field(_EXTERNAL, field(1, key.encode()) + field(2, value.encode()))
                for key, value in entries.items()
            ),
            field(_LOCATION, 1),
        )
    )
