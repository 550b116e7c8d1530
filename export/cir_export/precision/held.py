"""Graphs of a bundle that are being changed, without the large weights that lie beside them.

Such a weight stays in the bundle's file. A graph that is changed says of it only which one it is and what it
becomes; the values are read, and made, when they are written or run, one weight after the other. So a graph
may be larger than a protobuf message, and lowering takes no memory for weights.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, numpy_helper

from cir_export.weights import key_of, put_inside, put_off
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.model import MOST_INSIDE, Model, places_of
from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.errors import ExportError

__all__ = ["Held", "becomes", "check_inside", "int8_form", "nearest", "size_of", "values_of"]

Array = npt.NDArray[Any]

_INT8 = "int8/"
"""How such a form begins; after it the values of a channel that lie side by side, and the scales."""

_CHUNK = 1 << 20
"""Values that are rounded at a time, since the roundings make several arrays of their size."""


class Held:
    """The weights that a bundle keeps beside its graphs, by what `put_off` calls them.

    Args:
        bundle: its file must stay as it is.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._parts: dict[str, memoryview] = {}

    def graph(self, name: str) -> ModelProto:
        """A graph to be changed, its weights that lie beside it left there.

        Raises:
            BundleError, UsageError: see `Bundle.graph`.
        """
        return self._left_out(self._bundle.graph(name))

    def continuation(self) -> ModelProto:
        """What explanations add, in the same way; see `Bundle.continuation`."""
        return self._left_out(self._bundle.continuation())

    def _left_out(self, model: Model) -> ModelProto:
        proto: ModelProto = ModelProto.FromString(model.data)
        places = {place.name: place for place in places_of(model.data)}
        for tensor in proto.graph.initializer:
            place = places.get(tensor.name)
            if place is not None:
                self._parts[place.sha256] = model.weights[place.name].reshape(-1).view(np.uint8).data
                put_off(tensor, f"{place.sha256}:{place.kind}")
        return proto

    def __getitem__(self, key: str, /) -> _Made:
        """What `put_off` called so. KeyError: it is no weight of this bundle."""
        digest, kind, *forms = key.split(":")
        if digest not in self._parts:  # of a graph that was not asked of this one
            for name in self._bundle.manifest.graphs:
                self.graph(name)
            if self._bundle.manifest.explain is not None:
                self.continuation()
        return _Made(np.frombuffer(self._parts[digest], NUMBERS[int(kind)]), forms)

    def filled(self, model: ModelProto) -> ModelProto:
        """A copy that holds all of its weights.

        Raises:
            ExportError: they are more than fit one protobuf message.
        """
        check_inside(sum(size_of(tensor) for tensor in model.graph.initializer))
        copy = ModelProto()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            key = key_of(tensor)
            if key is not None:
                put_inside(tensor, self[key].tobytes())
        return copy

    def runnable(self, model: ModelProto) -> Model:
        """A graph as runtimes take it; those of its weights that stay what they are take no memory."""
        copy = ModelProto()
        copy.CopyFrom(model)
        weights: dict[str, Array] = {}
        for tensor in copy.graph.initializer:
            key = key_of(tensor)
            if key is None:
                continue
            values = self[key]
            if tensor.data_type not in NUMBERS:
                put_inside(tensor, values.tobytes())
                continue
            weights[tensor.name] = values.array().reshape(tuple(tensor.dims))
            del tensor.external_data[:]
            for entry, value in (("location", WEIGHTS_NAME), ("offset", "0"), ("length", size_of(tensor))):
                tensor.external_data.add(key=entry, value=str(value))
        return Model(copy.SerializeToString(), weights)


def check_inside(size: int) -> None:
    """Refuse to put so many bytes of weights into one graph.

    Raises:
        ExportError: they are more than fit one protobuf message.
    """
    if size > MOST_INSIDE:
        raise ExportError(
            f"a graph would hold {size / 1e9:.1f} GB of weights itself, and one ONNX model holds "
            f"{MOST_INSIDE / 1e9:.1f}: bfloat16 is kept inside a graph. Convert to float16 or int8, or "
            "convert a smaller model of its kind"
        )


class _Made:
    """A weight of the bundle, and what it becomes, one after the other."""

    def __init__(self, source: Array, forms: list[str]) -> None:
        self._source, self._forms = source, forms

    def array(self) -> Array:
        """One axis."""
        values = self._source
        for form in self._forms:
            values = _made(values, form)
        return values

    def tobytes(self) -> bytes:
        """See `Values`."""
        return self.array().tobytes()


def size_of(tensor: TensorProto) -> int:
    """Bytes of a constant's values, wherever they are."""
    if key_of(tensor) is None:
        return len(tensor.raw_data)
    width = 2 if tensor.data_type == TensorProto.BFLOAT16 else NUMBERS[tensor.data_type].itemsize
    return int(prod(tensor.dims)) * width


def values_of(tensor: TensorProto, held: Held | None) -> Array:
    """The values of a constant that is float32, wherever they are."""
    key = key_of(tensor)
    if key is None:
        inside: Array = numpy_helper.to_array(tensor)
        return inside
    assert held is not None  # or nobody could have put it off
    return held[key].array().reshape(tuple(tensor.dims))


def becomes(tensor: TensorProto, form: str) -> None:
    """Let a constant have another type, in place.

    Args:
        tensor: the constant.
        form: "float32", "float16", "bfloat16" or what `int8_form` gives.
    """
    key = key_of(tensor)
    if key is not None:
        put_off(tensor, f"{key}:{form}")
    else:
        put_inside(tensor, _made(numpy_helper.to_array(tensor), form).tobytes())
    tensor.data_type = TensorProto.INT8 if form.startswith(_INT8) else _FORMS[form][0]


def int8_form(scale: npt.NDArray[np.float32], shape: Sequence[int], axis: int) -> str:
    """The form of a weight of a shape in int8, with a scale for each channel along an axis and no zeros."""
    encoded = base64.urlsafe_b64encode(scale.astype("<f4").tobytes()).decode()
    return f"{_INT8}{prod(shape[axis + 1 :])}/{encoded}"


def _made(values: Array, form: str) -> Array:
    flat = values.reshape(-1)
    if form.startswith(_INT8):
        return _quantised(flat, form.removeprefix(_INT8))
    _, dtype, rounded = _FORMS[form]
    made = np.empty(flat.size, dtype)
    for start in range(0, flat.size, _CHUNK):
        made[start : start + _CHUNK] = rounded(flat[start : start + _CHUNK])
    return made


def _quantised(values: Array, form: str) -> Array:
    """As the quantiser of ONNX Runtime rounds: ties to even, -128 to 127."""
    inner, encoded = form.split("/")
    scale = np.frombuffer(base64.urlsafe_b64decode(encoded), "<f4")[:, None]
    grid = values.reshape(-1, len(scale), int(inner))
    made = np.empty(grid.shape, np.int8)
    channels = max(1, min(len(scale), _CHUNK // max(1, int(inner))))
    rows = max(1, _CHUNK // (channels * max(1, int(inner))))
    for row in range(0, len(grid), rows):
        for channel in range(0, len(scale), channels):
            where = slice(row, row + rows), slice(channel, channel + channels)
            part = grid[where] / scale[where[1]]
            made[where] = np.clip(np.rint(part, out=part), -128, 127, out=part)
    return made.reshape(-1)


def _half(values: Array) -> Array:
    """As the converter of ONNX Runtime rounds: nothing that is not zero becomes zero."""
    from onnxruntime.transformers.float16 import convert_np_to_float16

    half: Array = convert_np_to_float16(values)
    return half


def nearest(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even; infinities and NaN stay what they are."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    odd = ~np.isfinite(values)
    rounded[odd] = (bits[odd] >> 16).astype(np.uint16) | np.where(np.isnan(values[odd]), 0x40, 0).astype(
        np.uint16
    )
    return rounded


_FORMS: dict[str, tuple[int, str, Callable[[Array], Array]]] = {
    "float32": (TensorProto.FLOAT, "<f4", lambda values: values.astype(np.float32)),
    "float16": (TensorProto.FLOAT16, "<f2", _half),
    "bfloat16": (TensorProto.BFLOAT16, "<u2", nearest),
}
