"""The constants of a serialised ONNX model as the messages that they are: listed, changed, put elsewhere.

Nothing of a constant's values is read here: they may be gigabytes. The field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from cir_infer.bundle.onnx_model import model_fields
from cir_infer.bundle.wire import field, fields_of

__all__ = [
    "DIMS",
    "ENTRIES",
    "GRAPH",
    "INITIALIZER",
    "KIND",
    "LOCATION",
    "NAME",
    "OUTSIDE",
    "RAW",
    "changed",
    "elsewhere",
    "initializers",
]

GRAPH, INITIALIZER = 7, 5
"""Of a model, and of a graph."""

DIMS, KIND, NAME, RAW, ENTRIES, LOCATION = 1, 2, 8, 9, 13, 14
"""Of a constant: its axes, ONNX's number of its type, its name, its values, and where else these are."""

_KEY, _VALUE = 1, 2
OUTSIDE = 1
"""The `LOCATION` of a constant whose values are elsewhere."""


def initializers(model: bytes) -> Iterator[memoryview]:
    """The constants of a model's graph, in order.

    Raises:
        BundleError, ValueError, IndexError: it is no ONNX model.
    """
    for number, graph in model_fields(model):
        if number == GRAPH:
            yield from (value for inner, value in fields_of(graph) if inner == INITIALIZER)


def changed(model: bytes, change: Callable[[memoryview], bytes | memoryview | None]) -> bytes:
    """A model with other constants.

    Args:
        model: the serialised model.
        change: what stands in a constant's place; None where nothing does.

    Raises:
        BundleError, ValueError, IndexError: it is no ONNX model.
    """
    return b"".join(
        field(number, b"".join(_changed(value, change)) if number == GRAPH else value)
        for number, value in model_fields(model)
    )


def _changed(graph: memoryview, change: Callable[[memoryview], bytes | memoryview | None]) -> Iterator[bytes]:
    for number, value in fields_of(graph):
        kept = change(value) if number == INITIALIZER else value
        if kept is not None:
            yield field(number, kept)


def elsewhere(name: str, kind: int, shape: Iterable[int], entries: Mapping[str, str]) -> bytes:
    """A constant whose values are not in the model.

    Args:
        name: of it.
        kind: ONNX's number of its type.
        shape: of it.
        entries: what the model says of where they are.
    """
    said = (field(_KEY, key.encode()) + field(_VALUE, value.encode()) for key, value in entries.items())
    return b"".join(
        (
            *(field(DIMS, length) for length in shape),
            field(KIND, kind),
            field(NAME, name.encode()),
            *(field(ENTRIES, entry) for entry in said),
            field(LOCATION, OUTSIDE),
        )
    )
