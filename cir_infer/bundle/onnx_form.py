"""Holds a serialised ONNX model to the form that writers give it, before anything reads it.

A protocol buffer can be written so that readers disagree: a field that should come once comes twice, and
one reader takes the last while another joins them; a number stands where a text should, and one reader leaves
it out. A check that read the model otherwise than what runs it would check another model. So every message
that the checks look at is held against onnx.proto here: which fields may repeat, and how each is encoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cir_infer.bundle.wire import typed_fields
from cir_infer.errors import BundleError

__all__ = ["check_self_contained"]

_MOST_FIELDS = 1_000_000
"""Of a whole model: each takes time and memory beyond its bytes."""

_KINDS = {"int": (0,), "enum": (0,), "bytes": (2,), "float": (5,), "double": (1,)}
_MOST_ENUM = 1 << 31


class _Field(NamedTuple):
    kinds: tuple[int, ...]
    repeats: bool
    enum: bool


def _fields(**numbers: str) -> dict[int, _Field]:
    """Fields by number, from numbers by encoding: `7*` repeats, and numbers that repeat may be packed."""
    made: dict[int, _Field] = {}
    for encoding, words in numbers.items():
        for word in words.split():
            repeats = word.endswith("*")
            kinds = _KINDS[encoding] + ((2,) if repeats and encoding != "bytes" else ())
            made[int(word.rstrip("*"))] = _Field(kinds, repeats, encoding == "enum")
    return made


# A graph's name and text come twice where one goes on from another, see `cir_infer.bundle.continuation`.
_GRAPH = _fields(bytes="1* 2* 5* 10* 11* 12* 13* 14* 15* 16*")
_TENSOR = _fields(int="1* 5* 7* 11*", enum="2 14", float="4*", double="10*", bytes="3 6* 8 9 12 13* 16*")
_FORMS: dict[str, dict[int, _Field]] = {
    "model": _fields(int="1 5", bytes="2 3 4 6 7 8* 14* 20* 25* 26*"),
    "opset": _fields(bytes="1", int="2"),
    "main graph": _GRAPH,
    "graph": _GRAPH,
    "training": _fields(bytes="1 2 3* 4*"),
    "function": _fields(bytes="1 4* 5* 6* 7* 8 9* 10 11* 12* 13 14*"),
    "node": _fields(bytes="1* 2* 3 4 5* 6 7 8 9* 10*"),
    "attribute": _fields(float="2 7*", int="3 8*", enum="20", bytes="1 4 5 6 9* 10* 11* 13 14 15* 21 22 23*"),
    "initializer": _TENSOR,
    "tensor": _TENSOR,
    "sparse": _fields(bytes="1 2", int="3*"),
    "entry": _fields(bytes="1 2"),
    "value": _fields(bytes="1 2 3 4*"),
    "type": _fields(bytes="1 4 5 6 7 8 9"),
    "tensor type": _fields(enum="1", bytes="2"),
    "shape": _fields(bytes="1*"),
    "length": _fields(int="1", bytes="2 3"),
}
_ONE_OF = {"type": {1, 4, 5, 7, 8, 9}, "length": {1, 2}}
"""Of which a message may have one."""

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "main graph", 8: "opset", 20: "training", 25: "function"},
    "main graph": {1: "node", 5: "initializer", 11: "value", 12: "value", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "initializer": {13: "entry"},
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "length"},
}
"""Messages that hold others: by field number, what lies inside."""

_ODD = {
    "sparse": "sparse constants, and expected are dense ones",
    "function": "functions of its own, and expected are standard operators",
    "training": "what is for training",
}

_EXTERNAL_DATA, _DATA_LOCATION, _OP_TYPE = 13, 14, 4


def check_self_contained(model: bytes, beside: bool = False) -> None:
    """Refuse a model that names files: of values outside itself, or of a compiled part (`EPContext`).

    What a runtime does with such a name depends on its version: ONNX Runtime 1.23 opens absolute paths.
    Refused too are models that readers could understand in two ways, those with sparse constants, which
    become dense, of any size, when a model is loaded, and those with functions or training, which no bundle
    needs and one runtime or another may take in place of operators.

    Args:
        model: the serialised model.
        beside: the graph's own constants may lie beside it; `cir_infer.bundle.model.places_of` judges them.

    Raises:
        BundleError: it does so, is cut short, or is no ONNX model.
    """
    waiting = [("model", memoryview(model))]
    count = 0
    odd: set[str] = set()
    try:
        while waiting:
            message, data = waiting.pop()
            form, inside, one_of = _FORMS[message], _INSIDE.get(message, {}), _ONE_OF.get(message)
            seen: set[int] = set()
            for number, kind, value in typed_fields(data):
                count += 1
                if count > _MOST_FIELDS:
                    raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
                field = form.get(number)
                if field is not None:
                    _check_form(message, number, kind, value, field, seen)
                inner = inside.get(number)
                if inner is not None:
                    waiting.append((inner, value))
                    odd |= {inner} & _ODD.keys()
                if (message == "tensor" or (message == "initializer" and not beside)) and (
                    number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
                ):
                    raise BundleError("it keeps values in another file; export the model again")
                if message == "node" and number == _OP_TYPE and value == b"EPContext":
                    raise BundleError("it runs what another file holds (EPContext); export the model again")
            if one_of is not None and len(one_of & seen) > 1:
                raise ValueError(f"its {message} is two things at once")
    except (ValueError, IndexError, TypeError) as error:
        raise BundleError(
            f"it is no ONNX model that can be read ({error}); export the model again"
        ) from error
    if odd:
        raise BundleError(f"it has {_ODD[min(odd)]}; export the model again")


def _check_form(message: str, number: int, kind: int, value: Any, field: _Field, seen: set[int]) -> None:
    if kind not in field.kinds:
        raise ValueError(f"field {number} of its {message} is of kind {kind}")
    if field.enum and value >= _MOST_ENUM:
        raise ValueError(f"field {number} of its {message} is {value}")
    if not field.repeats:
        if number in seen:
            raise ValueError(f"field {number} of its {message} comes twice")
        seen.add(number)
