"""Large weights of graphs, laid into the one file that a bundle keeps them in (`cir_infer.bundle.model`)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from onnx import ModelProto, TensorProto

from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME, Manifest
from cir_infer.bundle.model import ALIGNMENT, MOST_INSIDE, Model
from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.bundle.writing import FilePart
from cir_infer.errors import BundleError, ExportError

__all__ = ["LARGE", "SEVERAL", "Values", "WeightsFile", "inside", "put_off", "write_with"]

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


def put_off(tensor: TensorProto, key: str) -> None:
    """Let a constant be without values until `WeightsFile.take`, which finds them under a key."""
    _elsewhere(tensor, {_LATER: key})


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

    def take(self, models: Sequence[ModelProto], values: Mapping[str, Values] | None = None) -> None:
        """Move the large constants of graphs, in their order, into the file.

        Args:
            models: changed in place.
            values: what constants that were `put_off` hold, by key.

        Raises:
            OSError: the file cannot be written.
        """
        with self.path.open("ab") as file:
            for tensor in (tensor for model in models for tensor in model.graph.initializer):
                if tensor.data_location == TensorProto.EXTERNAL:
                    data = (values or {})[tensor.external_data[0].value].tobytes()
                elif tensor.data_type in NUMBERS and len(tensor.raw_data) >= self.large:
                    data = tensor.raw_data
                else:
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


def inside(model: Model) -> ModelProto:
    """A graph that holds all of its weights, to be changed.

    Raises:
        ExportError: they are more than fit one protobuf message, which what changes graphs must write.
    """
    proto: ModelProto = ModelProto.FromString(model.data)
    if not model.weights:
        return proto
    if model.size > MOST_INSIDE:
        raise ExportError(
            f"a graph has {model.size / 1e9:.1f} GB of weights, and graphs beyond 2 GB are not converted to "
            "another precision; convert a smaller model of its kind"
        )
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = model.weights[tensor.name].tobytes()
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    return proto


def write_with(
    bundle: Bundle, path: Path, manifest: Manifest, models: Mapping[str, ModelProto], large: int = SEVERAL
) -> None:
    """Write a bundle that has other graphs than another one, and all else from it.

    Args:
        bundle: the other one.
        path: of the new one.
        manifest: of the new one, as far as its graphs go.
        models: graphs with all of their weights, by member.
        large: bytes of all weights from which they lie beside the graphs.

    Raises:
        ExportError: the graphs do not make a valid bundle.
        OSError: it cannot be written.
    """
    explain, source = manifest.explain, bundle.manifest
    protos = dict(models)
    try:
        if source.weights is not None:  # where all graphs' weights lie, so all are laid out anew
            for graph, name in source.graphs.items():
                if name not in protos:
                    protos[name] = inside(bundle.graph(graph))
            if explain is not None and explain.file not in protos:
                protos[explain.file] = inside(bundle.continuation())
        left_out = {source.weights, *protos}
        if source.explain is not None and explain is None:
            left_out.add(source.explain.file)
        members = bundle.contents(name for name in source.members if name not in left_out)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            size = sum(len(t.raw_data) for model in protos.values() for t in model.graph.initializer)
            weights = WeightsFile(Path(scratch) / WEIGHTS_NAME) if size >= large else None
            if weights is not None:
                protos = {name: _copied(proto) for name, proto in protos.items()}
                weights.take(list(protos.values()))
            members |= {name: proto.SerializeToString(deterministic=True) for name, proto in protos.items()}
            if weights is not None and not weights.empty:
                members[WEIGHTS_NAME] = FilePart.of(weights.path)
            beside: Literal["weights.bin"] | None = "weights.bin" if WEIGHTS_NAME in members else None
            write_bundle(path, replace(manifest, weights=beside), members)
    except BundleError as error:
        raise ExportError(f"the lowered graphs do not make a valid bundle: {error}") from error


def _copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
