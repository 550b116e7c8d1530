"""The image graph with what explanations add to it, opened when the first one is asked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import Manifest
from cir_infer.errors import BundleError
from cir_infer.runtime.device_names import OPENVINO
from cir_infer.runtime.devices import open_backend
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.plan_policy import PlanPolicy
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
    """The graph where the others run; ONNX Runtime stands in for TensorRT, and in int8 for OpenVINO.

    Explanations are few, so no plan is built for them: on `ort-tensorrt` CUDA runs them, on `tensorrt` the
    CPU. OpenVINO 2026.4 gives other rows, and infinite parts, where int8 activations are read again as
    float32 by what an explanation adds. The weights are held once more while the graph is open.

    Raises:
        BundleError, DeviceError: see `open_graphs`.
    """
    instead = {"ort-tensorrt": "cuda", "tensorrt": "cpu"}.get(device, device)
    if manifest.precision == "int8" and device in OPENVINO:
        instead = "cpu"
    policy = PlanPolicy(precision=manifest.precision, int8_form=manifest.int8_form)
    graph = open_backend(instead, threads, policy).load("explain", bundle.graph("explain"))
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
