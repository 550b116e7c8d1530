"""A graph as runtimes take it: an ONNX model, and the values of constants that lie beside it.

A protobuf message ends at 2 GiB, and what is inside one is copied whenever it is read. So a bundle with large
weights keeps them in one member for all of its graphs, `WEIGHTS_NAME`, each at a multiple of `ALIGNMENT`
bytes. A graph says of such a constant, in the form that ONNX has for it, the name of that member, offset,
length and sha256: equal graphs so have equal weights. The name is never opened. The bundle maps its own
file, and runtimes are handed the values.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cir_infer.bundle.initializers import (
    DIMS,
    ENTRIES,
    KIND,
    LOCATION,
    NAME,
    OUTSIDE,
    RAW,
    changed,
    initializers,
)
from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.onnx_model import NUMBERS, Array
from cir_infer.bundle.wire import field as wire_field
from cir_infer.bundle.wire import fields_of, signed, text_of
from cir_infer.errors import BundleError, shown

__all__ = [
    "ALIGNMENT",
    "MOST_INSIDE",
    "Model",
    "Place",
    "map_file",
    "model_of",
    "places_of",
    "read_model",
    "write_model",
]

ALIGNMENT = 64
"""Bytes at whose multiples a weight begins, in the file too."""

MOST_INSIDE = (1 << 31) - (16 << 20)
"""Bytes of weights that an ONNX model can hold itself."""

_MOST_AXES = 64
"""Of a constant; NumPy has no more."""


class Place(NamedTuple):
    """Where the values of a constant lie in the file of weights.

    Attributes:
        name: of the constant.
        kind: ONNX's number of its type.
        shape: of it.
        offset: bytes from the file's begin.
        length: bytes.
        sha256: of these, hex.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """A graph.

    Attributes:
        data: the serialised ONNX model.
        weights: values of the constants that are not in it, by name. They may be mapped from a file and
            must stay as long as what runs them.
        mapped: that file, where they are.
    """

    data: bytes
    weights: Mapping[str, Array] = field(default_factory=dict)
    mapped: memoryview | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return len(self.data) + sum(value.nbytes for value in self.weights.values())

    @property
    def stored(self) -> int:
        """Bytes that it takes on the disk: weights that share a place count once."""
        places = {(value.__array_interface__["data"][0], value.nbytes) for value in self.weights.values()}
        return len(self.data) + sum(length for _, length in places)

    def release_pages(self) -> None:
        """Let pages of mapped weights count no longer as this process's memory; what is read comes back."""
        if self.mapped is not None and isinstance(self.mapped.obj, mmap.mmap):
            with suppress(AttributeError, OSError):  # not on every system
                self.mapped.obj.madvise(mmap.MADV_DONTNEED)

    def whole(self) -> bytes:
        """One ONNX model that holds all of its weights; they are copied.

        Raises:
            BundleError: they are more than a model can hold.
        """
        if not self.weights:
            return self.data
        if self.size > MOST_INSIDE:
            raise BundleError(
                f"the graph has {self.size / 1e9:.1f} GB, and one ONNX model holds {MOST_INSIDE / 1e9:.1f}"
            )
        return changed(self.data, self._inside)

    def _inside(self, tensor: memoryview) -> bytes | memoryview:
        place = _place(tensor)
        if place is None:
            return tensor
        kept = (wire_field(n, v) for n, v in fields_of(tensor) if n not in (ENTRIES, LOCATION))
        raw = np.ascontiguousarray(self.weights[place.name]).tobytes()
        return b"".join((*kept, wire_field(RAW, raw)))


def places_of(model: bytes) -> list[Place]:
    """The constants of a graph that lie beside it, in order.

    Raises:
        BundleError: the model cannot be read, or says of one something else than where it lies.
    """
    try:
        found = [place for tensor in initializers(model) if (place := _place(tensor)) is not None]
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise BundleError(
            f"its weights cannot be found ({shown(error, 80)}); export the model again"
        ) from error
    names = [place.name for place in found]
    if len(set(names)) != len(names):
        raise BundleError("two of its weights have one name; export the model again")
    return found


def _place(tensor: memoryview) -> Place | None:
    """Where a constant lies; None for one that is in the model."""
    numbers: dict[int, list[int | memoryview]] = {}
    for number, value in fields_of(tensor):
        numbers.setdefault(number, []).append(value)
    if ENTRIES not in numbers and numbers.get(LOCATION, [0]) == [0]:
        return None
    if not set(numbers) <= {DIMS, KIND, NAME, ENTRIES, LOCATION} or numbers.get(LOCATION) != [OUTSIDE]:
        raise ValueError("a weight is here and elsewhere")
    ((kind,), (name,)) = numbers.get(KIND, []), numbers.get(NAME, [])
    said = [_entry(entry) for entry in numbers.get(ENTRIES, [])]
    entries = dict(said)
    if len(said) != 4 or set(entries) != {"location", "offset", "length", "checksum"}:
        raise ValueError(f"a weight of {shown(sorted(entries), 60)}")
    if entries["location"] != WEIGHTS_NAME or not re.fullmatch("[0-9a-f]{64}", entries["checksum"]):
        raise ValueError(f"a weight in {shown(entries['location'], 40)}")
    if not all(re.fullmatch("[0-9]{1,15}", entries[key]) for key in ("offset", "length")):
        raise ValueError("a weight at no number")
    offset, length = int(entries["offset"]), int(entries["length"])
    shape = tuple(_lengths(numbers.get(DIMS, [])))
    dtype = NUMBERS.get(kind) if isinstance(kind, int) else None
    if (
        dtype is None
        or len(shape) > _MOST_AXES
        or min(shape, default=0) < 0
        or offset % ALIGNMENT
        or prod(shape) * dtype.itemsize != length
    ):
        raise ValueError(f"a weight of shape {shown(list(shape), 60)} and {length} bytes")
    assert isinstance(kind, int)
    return Place(text_of(name), kind, shape, offset, length, entries["checksum"])


def _entry(entry: int | memoryview) -> tuple[str, str]:
    pair = dict(fields_of(memoryview(entry))) if not isinstance(entry, int) else {}
    return text_of(pair[1]) if 1 in pair else "", text_of(pair[2]) if 2 in pair else ""


def _lengths(values: list[int | memoryview]) -> list[int]:
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(signed(value))
        else:
            raise ValueError("a packed shape")
    return found


def map_file(path: Path, begin: int, length: int) -> memoryview:
    """A part of a file, mapped for reading.

    Raises:
        OSError: it cannot be.
        ValueError: the file is shorter.
    """
    page = begin - begin % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        if length < 1 or file.seek(0, 2) < begin + length:
            raise ValueError("it ends too early")
        mapped = mmap.mmap(file.fileno(), begin - page + length, access=mmap.ACCESS_READ, offset=page)
    return memoryview(mapped)[begin - page :]


def model_of(data: bytes, file: memoryview, verify: bool = True) -> Model:
    """A graph with its weights from the file of them.

    Args:
        data: the serialised model.
        file: the file, mapped.
        verify: hold every weight against its sha256.

    Raises:
        BundleError: it asks for what is not in the file, or a weight has another sha256.
    """
    weights: dict[str, Array] = {}
    places = places_of(data)
    digests: dict[tuple[int, int], str] = {}
    end = 0
    for place in sorted(places, key=lambda place: (place.offset, place.length)):
        where = place.offset, place.length
        part = file[place.offset : place.offset + place.length]
        if len(part) != place.length:
            raise _wrong(place, f"lies beyond {WEIGHTS_NAME}")
        if where not in digests:
            # Equal weights may share a place, which is read once; otherwise a small graph could ask for more
            # reading, and seem to hold more, than any file has.
            if place.offset < end:
                raise _wrong(place, "lies partly where another one does")
            end = place.offset + place.length
            digests[where] = hashlib.sha256(part).hexdigest() if verify else place.sha256
        if digests[where] != place.sha256:
            raise _wrong(place, "does not have the sha256 that the graph gives")
    for place in places:
        part = file[place.offset : place.offset + place.length]
        try:
            weights[place.name] = np.frombuffer(part, NUMBERS[place.kind]).reshape(place.shape)
        except ValueError as error:  # no element, and axes beyond all numbers
            raise _wrong(place, "has a shape that no array has") from error
    return Model(data, weights, file)


def _wrong(place: Place, what: str) -> BundleError:
    return BundleError(
        f"its weight {shown(place.name, 60)} {what}; copy the bundle again or export the model again"
    )


def write_model(model: Model, path: Path) -> None:
    """Write a graph for a process or program of one's own: an ONNX model, and its weights beside it.

    The file of weights has those of this graph where they were, and holes for others'.

    Raises:
        OSError: it cannot be written.
    """
    path.write_bytes(model.data)
    if model.weights:
        with path.with_name(WEIGHTS_NAME).open("wb") as file:
            for place in places_of(model.data):
                file.seek(place.offset)
                file.write(np.ascontiguousarray(model.weights[place.name]).data.cast("B"))


def read_model(path: Path) -> Model:
    """What `write_model` wrote.

    Raises:
        BundleError, OSError, ValueError: it is not that.
    """
    data = path.read_bytes()
    if not places_of(data):
        return Model(data)
    weights = path.with_name(WEIGHTS_NAME)
    return model_of(data, map_file(weights, 0, weights.stat().st_size), verify=False)
