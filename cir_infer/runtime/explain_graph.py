"""The image graph with what explanations add to it, opened when the first one is asked for."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import Manifest
from cir_infer.errors import BundleError
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.signature import check_signature

__all__ = ["InParts", "open_explain_graph", "run_in_parts"]

Floats = npt.NDArray[np.float32]


class InParts(NamedTuple):
    """Rows of n images and the sums over positions that they are, up to a positive factor.

    Attributes:
        rows: float32 (n, D), gallery rows.
        parts: float32 (n, h, w, D), what each position brings; the grid covers the prepared image evenly.
        constant: float32 (n, D), what no position has.
    """

    rows: Floats
    parts: Floats
    constant: Floats


def open_explain_graph(bundle: Bundle, manifest: Manifest, device: str, threads: int | None) -> Graph:
    """The graph on ONNX Runtime, whatever runs the others: on CUDA where they use it, else on the CPU.

    Explanations are few, so no TensorRT plan is built for them. The weights are held once more while the
    graph is open.

    Raises:
        BundleError, DeviceError: see `open_graphs`.
    """
    from cir_infer.runtime.onnx import OnnxBackend

    provider: Literal["cpu", "cuda"] = "cuda" if device in ("cuda", "ort-tensorrt") else "cpu"
    graph = OnnxBackend(provider, threads).load("explain", bundle.graph("explain"))
    check_signature("explain", graph, manifest)
    return graph


def run_in_parts(graph: Graph, batch: Array, manifest: Manifest) -> InParts:
    """Prepared images, uint8 (n, H, W, 3), as sums over positions.

    Raises:
        BundleError: they are not of the shape that the manifest says, or not finite.
        DeviceError: the device failed.
    """
    outputs = graph.run({"image": batch})
    grid, width = manifest.explain, manifest.embedding_dim
    places = () if grid is None else (grid.height, grid.width)
    for name, shape in (("embedding", ()), ("parts", places), ("constant", ())):
        value, wanted = outputs[name], (len(batch), *shape, width)
        if value.shape != wanted or not np.isfinite(value).all():
            what = "NaN or infinity" if value.shape == wanted else f"{value.shape} values"
            raise BundleError(
                f"the explain graph gives {what} as {name}; expected {wanted} finite numbers, so export the "
                "model again"
            )
    return InParts(outputs["embedding"], outputs["parts"], outputs["constant"])
