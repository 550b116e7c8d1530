"""Large weights of graphs, laid into the one file that a bundle keeps them in (`cir_infer.bundle.model`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from onnx import ModelProto, TensorProto

from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.model import ALIGNMENT
from cir_infer.bundle.onnx_model import NUMBERS

__all__ = ["LARGE", "SEVERAL", "Lookup", "Values", "WeightsFile", "key_of", "put_inside", "put_off"]

SEVERAL = 256 << 20
"""Bytes of all weights from which they lie beside the graphs."""

LARGE = 4 << 10
"""Bytes of a weight from which it does."""

_LATER = "cir_export/later"


class Values(Protocol):
    """What gives a weight's bytes when they are written: a tensor that is in memory anyway."""

    def tobytes(self) -> bytes:
        """Little-endian, in C order."""
        ...


class Lookup(Protocol):
    """Gives the values of what was `put_off`, by key."""

    def __getitem__(self, key: str, /) -> Values:
        """See above; KeyError for a key of somewhere else."""
        ...


def put_off(tensor: TensorProto, key: str) -> None:
    """Let a constant be without values until `WeightsFile.take`, which finds them under a key."""
    _elsewhere(tensor, {_LATER: key})


def key_of(tensor: TensorProto) -> str | None:
    """What `put_off` called a constant; None for one that has its values."""
    said = tensor.external_data
    return said[0].value if len(said) == 1 and said[0].key == _LATER else None


def put_inside(tensor: TensorProto, data: bytes) -> None:
    """Give a constant its values, little-endian."""
    for field in ("data_location", "external_data", "float_data", "int32_data", "int64_data"):
        tensor.ClearField(field)
    tensor.raw_data = data


class WeightsFile:
    """Writes weights one after the other; equal ones, of whichever graph, once.

    Args:
        path: of the file, which is written anew.
        large: bytes of a weight from which it is taken.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, large: int = LARGE) -> None:
        self.path = path
        self.large = large
        self._places: dict[str, int] = {}
        self._end = 0
        path.write_bytes(b"")

    @property
    def empty(self) -> bool:
        """Whether nothing was large."""
        return self._end == 0

    def take(self, models: Sequence[ModelProto], values: Lookup | None = None) -> None:
        """Move the large constants of graphs, in their order, into the file.

        Args:
            models: changed in place.
            values: what constants that were `put_off` hold, by key; what is small goes inside.

        Raises:
            OSError: the file cannot be written.
        """
        with self.path.open("ab") as file:
            for tensor in (tensor for model in models for tensor in model.graph.initializer):
                key = key_of(tensor)
                if key is None:
                    data = tensor.raw_data
                else:
                    assert values is not None  # or nobody could have put it off
                    data = values[key].tobytes()
                if tensor.data_type not in NUMBERS or len(data) < self.large:
                    if key is not None:
                        put_inside(tensor, data)
                    continue
                digest = hashlib.sha256(data).hexdigest()
                if digest not in self._places:
                    begin = self._end + -self._end % ALIGNMENT
                    file.write(bytes(begin - self._end))
                    file.write(data)
                    self._places[digest], self._end = begin, begin + len(data)
                _point(tensor, self._places[digest], len(data), digest)


def _point(tensor: TensorProto, offset: int, length: int, digest: str) -> None:
    tensor.ClearField("doc_string")
    said = {"location": WEIGHTS_NAME, "offset": str(offset), "length": str(length), "checksum": digest}
    _elsewhere(tensor, said)


def _elsewhere(tensor: TensorProto, entries: Mapping[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
