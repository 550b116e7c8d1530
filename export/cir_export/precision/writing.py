"""Writes a bundle that has other graphs than another one, and all else from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from cir_export.precision.held import Held, check_inside, size_of
from cir_export.weights import SEVERAL, WeightsFile
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME, Manifest
from cir_infer.bundle.writing import FilePart
from cir_infer.console.progress import progress_bar
from cir_infer.errors import BundleError, ExportError
from cir_infer.processes.outputs import scratch_beside

__all__ = ["write_with"]


def write_with(
    bundle: Bundle,
    path: Path,
    manifest: Manifest,
    models: Mapping[str, ModelProto],
    large: int | None = None,
    progress: bool = False,
) -> None:
    """Write a bundle that has other graphs than another one, and all else from it.

    Args:
        bundle: the other one.
        path: of the new one.
        manifest: of the new one, as far as its graphs go.
        models: graphs by member; weights that they leave out are the other bundle's (`Held`).
        large: bytes of all weights from which they lie beside the graphs. Without it from `SEVERAL` on, and
            where the other bundle's do, so that what two graphs share stays there once.
        progress: say how far it is.

    Raises:
        ExportError: the graphs do not make a valid bundle, or one would hold more than 2 GB itself.
        OSError: it cannot be written.
    """
    explain, source = manifest.explain, bundle.manifest
    held, protos = Held(bundle), dict(models)
    try:
        if source.weights is not None:  # where all graphs' weights lie, so all are laid out anew
            for graph, name in source.graphs.items():
                if name not in protos:
                    protos[name] = held.graph(graph)
            if explain is not None and explain.file not in protos:
                protos[explain.file] = held.continuation()
        left_out = {source.weights, *protos}
        if source.explain is not None and explain is None:
            left_out.add(source.explain.file)
        members = bundle.contents(name for name in source.members if name not in left_out)
        with scratch_beside(path) as scratch:
            size = sum(size_of(t) for model in protos.values() for t in model.graph.initializer)
            if large is None:
                large = SEVERAL if source.weights is None else 0
            weights = WeightsFile(scratch / WEIGHTS_NAME) if size >= large else None
            # One after the other: what stays inside is in memory.
            for name, proto in progress_bar(protos.items(), len(protos), "making weights", "graph", progress):
                members[name] = _serialised(proto, weights, held)
            if weights is not None and not weights.empty:
                members[WEIGHTS_NAME] = FilePart.of(weights.path)
            beside: Literal["weights.bin"] | None = "weights.bin" if WEIGHTS_NAME in members else None
            write_bundle(path, replace(manifest, weights=beside), members, progress)
    except BundleError as error:
        raise ExportError(f"the lowered graphs do not make a valid bundle: {error}") from error


def _serialised(model: ModelProto, weights: WeightsFile | None, held: Held) -> bytes:
    if weights is None:
        whole = held.filled(model)
    else:
        whole = ModelProto()
        whole.CopyFrom(model)
        weights.take([whole], held)
        check_inside(sum(len(tensor.raw_data) for tensor in whole.graph.initializer))
    data: bytes = whole.SerializeToString(deterministic=True)
    return data
