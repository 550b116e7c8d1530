"""What is known of a tensor before a graph runs: type, shape, and the values that make sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from cir_infer.bundle.onnx_model import Array, Node
from cir_infer.errors import shown

__all__ = ["ITEM_BYTES", "KEPT", "Shape", "Step", "TooLargeError", "UnclearError", "Value", "broadcast"]

Shape = tuple[int, ...]

KEPT = 4096
"""Elements up to which a tensor's values are followed: shapes and the like are short."""

BOOL, INT32, INT64, FLOAT, UINT8 = 9, 6, 7, 1, 2
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of an element by ONNX's number of its type."""

_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
}
_LARGEST = 1 << 40


class UnclearError(Exception):
    """A node is not what its operator takes, or makes a size that only running it would tell."""


class TooLargeError(Exception):
    """A tensor or its making is larger than any bundle needs."""


@dataclass
class Value:
    """A tensor.

    Attributes:
        kind: ONNX's number of its type.
        shape: of it.
        data: its values, where they are known and at most `KEPT`.
        fixed: it depends on no input, so that a runtime may compute it once and keep it.
    """

    kind: int
    shape: Shape
    data: Array | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        if any(length < 0 for length in self.shape) or math.prod(self.shape) > _LARGEST:
            raise TooLargeError(f"a tensor of shape {shown(list(self.shape))}")

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of all elements."""
        return self.count * ITEM_BYTES.get(self.kind, 8)

    @staticmethod
    def of(array: Array) -> Value:
        """A constant."""
        kind = next((kind for kind, dtype in _DTYPES.items() if dtype == array.dtype), FLOAT)
        return Value(kind, array.shape, array if array.size <= KEPT else None, True)


def dtype_of(kind: int) -> np.dtype[Any]:
    """NumPy's type for ONNX's number of it; what makes no sizes may be any."""
    return _DTYPES.get(kind, _DTYPES[FLOAT])


class Step:
    """A node with what is known of its inputs; rules ask it for what they need."""

    def __init__(self, node: Node, inputs: Sequence[Value | None], opset: int) -> None:
        self.node = node
        self.inputs = inputs
        self.opset = opset
        self.work = 0.0
        """Beside a step for each element that goes in or comes out."""
        self.scratch = 0
        """Bytes that are needed on the way."""

    def refuse(self, what: str) -> NoReturn:
        """Say what is wrong with the node."""
        raise UnclearError(what)

    def has(self, place: int) -> bool:
        """Whether an optional input is there."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def value(self, place: int = 0) -> Value:
        """An input that must be there."""
        found = self.inputs[place] if place < len(self.inputs) else None
        if found is None:
            self.refuse(f"input {place} is missing")
        return found

    def shape(self, place: int = 0) -> Shape:
        """Of an input that must be there."""
        return self.value(place).shape

    def data(self, place: int) -> Array:
        """Values of an input that makes a size."""
        found = self.value(place).data
        if found is None:
            self.refuse(f"input {place} makes a size and is computed from what the graph is given")
        return found

    def whole(self, place: int) -> list[int]:
        """As `data`, whole numbers."""
        return [int(number) for number in self.data(place).reshape(-1)]

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of its default's type."""
        found = self.node.attributes.get(name, default)
        if found is None or (default is not None and not isinstance(found, type(default))):
            self.refuse(f"its {name} is {shown(found, 40)}")
        return found

    def number(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        return int(self.attribute(name, default))

    def numbers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute that is a list of whole numbers."""
        found = self.node.attributes.get(name, list(default))
        if not isinstance(found, list) or not all(isinstance(n, int) for n in found):
            self.refuse(f"its {name} is {shown(found, 40)}")
        return list(found)

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= value < max(rank, 1):
            self.refuse(f"axis {value} of a tensor of {rank}")
        return value % max(rank, 1)

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        """Different axes, counted from the front."""
        found = [self.axis(value, rank) for value in values]
        if len(set(found)) != len(found):
            self.refuse(f"axes {shown(list(values))} name one twice")
        return found


def broadcast(step: Step, shapes: Sequence[Shape]) -> Shape:
    """The shape of NumPy's broadcasting."""
    rank = max(map(len, shapes))
    out = []
    for axis in range(rank):
        lengths = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(lengths) > 1:
            step.refuse(f"shapes {shown([list(s) for s in shapes])} do not fit each other")
        out.append(lengths.pop() if lengths else 1)
    return tuple(out)
