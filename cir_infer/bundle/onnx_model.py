"""Reads what an ONNX model holds: nodes, attributes, constants. The runtime has no `onnx` package.

A model is a protocol buffer (`wire`). The field numbers are those of onnx.proto, which never change. Nothing
is executed, and every length is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.wire import fields_of, integers_of, signed, text_of
from cir_infer.errors import BundleError

__all__ = [
    "NUMBERS",
    "Array",
    "Input",
    "Node",
    "OnnxModel",
    "model_fields",
    "read_onnx_model",
]

Array = npt.NDArray[Any]

NUMBERS: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    5: np.dtype("<i2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u8"),
}
"""Types of constants that are read, by ONNX's number; others are left out of `OnnxModel.constants`."""

_BFLOAT16 = 16
"""Read as the float32 numbers that they are: NumPy has no such type."""

_LISTS = {1: 4, 7: 7, 11: 10, 12: 11, 13: 11}
"""The field that holds a constant's numbers where they are not raw, by type; 5 for the others."""

_MOST_NUMBERS = 1 << 20
"""Bytes of one list of numbers of variable length; long ones are stored raw."""


@dataclass(frozen=True)
class Node:
    """One operator of a graph; an empty name is an input or output that is left out."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """What a graph says of an input.

    Attributes:
        name: of it.
        kind: ONNX's number of its type; 0 where it is no tensor.
        shape: lengths of its axes, None for those left open; None altogether where nothing is said.
    """

    name: str
    kind: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class OnnxModel:
    """A graph's nodes in order, its constants of numeric types, and the names of its inputs and outputs.

    Attributes:
        opset: of the standard operators.
        declared: the inputs with types and shapes.
        stores_bfloat16: whether a constant is stored in bfloat16.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int = 0
    declared: tuple[Input, ...] = ()
    stores_bfloat16: bool = False


def read_onnx_model(model: bytes, beside: Mapping[str, Array] | None = None) -> OnnxModel:
    """Read a serialised model.

    Args:
        model: the serialised model.
        beside: values of constants that it keeps elsewhere, by name; see `cir_infer.bundle.model`.

    Raises:
        BundleError: it is cut short, or no ONNX model.
    """
    fields = model_fields(model)
    graphs = [value for number, value in fields if number == 7]
    try:
        opsets = [_opset(value) for number, value in fields if number == 8]
        standard = [version for domain, version in opsets if domain in ("", "ai.onnx")]
        if len(standard) > 1:
            raise ValueError("two versions of the standard operators")
        return _graph(graphs[0], sum(standard), beside or {})
    except (ValueError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise BundleError(
            f"this is no ONNX model that can be read ({error}); export the model again"
        ) from error


def model_fields(model: bytes) -> list[tuple[int, Any]]:
    """Number and value of each field of a serialised model, one graph among them.

    Raises:
        BundleError: it is cut short, or no ONNX model.
    """
    try:
        fields = list(fields_of(memoryview(model)))
        graphs = sum(number == 7 for number, _ in fields)
        if graphs != 1:
            raise ValueError(f"{graphs} graphs")
    except (ValueError, IndexError, TypeError) as error:
        raise BundleError(
            f"this is no ONNX model that can be read ({error}); export the model again"
        ) from error
    return fields


def _opset(data: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in fields_of(data):
        if number == 1:
            domain = text_of(value)
        elif number == 2:
            version = value
    return domain, version


def _input(data: memoryview) -> Input:
    name, kind = "", 0
    shape: tuple[int | None, ...] | None = None
    for number, value in fields_of(data):
        if number == 1:
            name = text_of(value)
        elif number == 2:
            kind, shape = _tensor_type(value)
    return Input(name, kind, shape)


def _tensor_type(data: memoryview) -> tuple[int, tuple[int | None, ...] | None]:
    kind = 0
    shape: tuple[int | None, ...] | None = None
    for number, tensor in fields_of(data):
        if number != 1:
            return 0, None
        for inner, value in fields_of(tensor):
            if inner == 1:
                kind = value
            elif inner == 2:
                shape = tuple(_length(dim) for place, dim in fields_of(value) if place == 1)
    return kind, shape


def _length(data: memoryview) -> int | None:
    found: int | None = None
    for number, value in fields_of(data):
        if number == 1:
            found = signed(value)
    return found


def _graph(data: memoryview, opset: int, beside: Mapping[str, Array]) -> OnnxModel:
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    inputs: list[Input] = []
    outputs: list[str] = []
    bfloat16 = False
    named: set[str] = set()
    for number, value in fields_of(data):
        if number == 1:
            node = _node(value)
            nodes.append(node)
            constant = node.attributes.get("value")
            if node.op == "Constant" and constant is not None and len(node.outputs) == 1:
                _once(constants, node.outputs[0], constant)
        elif number == 5:
            name, constant = _tensor(value)
            if name in named:
                raise ValueError("two constants have one name")
            named.add(name)
            constant = beside.get(name) if constant is None else constant
            bfloat16 |= any(field == 2 and kind == _BFLOAT16 for field, kind in fields_of(value))
            if constant is not None:
                _once(constants, name, constant)
        elif number == 11:
            inputs.append(_input(value))
        elif number == 12:
            outputs.append(text_of(_only(value, 1)))
    names = tuple(value.name for value in inputs)
    return OnnxModel(tuple(nodes), constants, names, tuple(outputs), opset, tuple(inputs), bfloat16)


def _once(constants: dict[str, Array], name: str, constant: Array) -> None:
    if constants.setdefault(name, constant) is not constant:
        raise ValueError("two constants have one name")


def _node(data: memoryview) -> Node:
    names: dict[int, list[str]] = {1: [], 2: []}
    op = domain = ""
    attributes: dict[str, Any] = {}
    for number, value in fields_of(data):
        if number in names:
            names[number].append(text_of(value))
        elif number == 4:
            op = text_of(value)
        elif number == 7:
            domain = text_of(value)
        elif number == 5:
            name, found = _attribute(value)
            if name in attributes:
                raise ValueError("two attributes of a node have one name")
            attributes[name] = found
    return Node(op, domain, tuple(names[1]), tuple(names[2]), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    """Its name and value: float, int, text, array, or lists of these; None for a graph."""
    name, kind = "", 0
    values: dict[int, list[Any]] = {}
    for number, value in fields_of(data):
        if number == 1:
            name = text_of(value)
        elif number == 20:
            kind = value
        else:
            values.setdefault(number, []).append(value)

    def first(number: int, default: Any) -> Any:
        return values.get(number, [default])[-1]

    if kind == 1:
        return name, struct.unpack("<f", first(2, b"\0\0\0\0"))[0]
    if kind == 2:
        return name, signed(first(3, 0))
    if kind == 3:
        return name, text_of(first(4, memoryview(b"")))
    if kind == 4:
        return name, _tensor(first(5, memoryview(b"")))[1]
    if kind == 6:
        return name, [float(v) for v in _numbers(values.get(7, []), np.dtype("<f4"))]
    if kind == 7:
        return name, [int(v) for v in _numbers(values.get(8, []), np.dtype("<i8"))]
    if kind == 8:
        return name, [text_of(value) for value in values.get(9, [])]
    return name, None


def _tensor(data: memoryview) -> tuple[str, Array | None]:
    """Its name and value; None for a type that is not read, or content in another file."""
    name, kind, location = "", 0, 0
    lists: dict[int, list[Any]] = {1: [], 4: [], 5: [], 7: [], 10: [], 11: []}
    raw: memoryview | None = None
    for number, value in fields_of(data):
        if number in lists:
            lists[number].append(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = text_of(value)
        elif number == 9:
            raw = value
        elif number == 14:
            location = value
    dtype = np.dtype("<u2") if kind == _BFLOAT16 else NUMBERS.get(kind)
    if dtype is None or location != 0:
        return name, None
    shape = [int(length) for length in _numbers(lists[1], np.dtype("<i8"))]
    if min(shape, default=0) < 0:
        raise ValueError(f"a constant of shape {shape}")
    if raw is not None:
        flat = np.frombuffer(raw, dtype)
    elif kind == 10:  # bits of a float16, each in an int32
        flat = _numbers(lists[5], np.dtype("<i4")).astype("<u2").view("<f2")
    elif kind in _LISTS:
        flat = _numbers(lists[_LISTS[kind]], dtype)
    else:
        flat = _numbers(lists[5], np.dtype("<i4")).astype(dtype)
    if kind == _BFLOAT16:
        flat = (flat.astype("<u4") << 16).view("<f4")
    return name, flat.reshape(shape)


def _numbers(values: list[Any], dtype: np.dtype[Any]) -> Array:
    """A repeated field, whose values may be packed into one or stand one by one."""
    found: list[Array] = []
    for value in values:
        if isinstance(value, int):
            found.append(np.array([signed(value)], dtype))
        elif dtype.kind == "f":
            found.append(np.frombuffer(value, dtype))
        elif len(value) > _MOST_NUMBERS:
            raise ValueError(f"a list of {len(value):,} bytes of numbers that are not stored raw")
        else:
            numbers = [n if dtype.kind == "u" else signed(n) for n in integers_of(value)]
            found.append(np.array(numbers, dtype))
    return np.concatenate(found) if found else np.empty(0, dtype)


def _only(data: memoryview, wanted: int) -> Any:
    for number, value in fields_of(data):
        if number == wanted:
            return value
    raise ValueError(f"a message without its field {wanted}")
