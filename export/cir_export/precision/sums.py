"""Whether gallery rows are still sums over positions when the image graph has another precision.

What explanations add to the image graph stays float32 and reads the lowered graph's values, so a row and its
sum differ by the roundings of the layers behind the last map. The rest of an explained term takes that up.
"""

from __future__ import annotations

import numpy as np

from cir_export.samples import Samples
from cir_infer.bundle import Bundle
from cir_infer.console.progress import progress_bar
from cir_infer.errors import BundleError, DeviceError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.runtime.explain_graph import open_explain_graph, run_in_parts

__all__ = ["LIMITS", "sums_gap"]

LIMITS = {"bfloat16": 2e-2, "float16": 1e-3, "int8": 2e-2}
"""The largest accepted difference of a row and its sum, relative to the row's largest value."""

_BATCH = 4
"""Images at a time: a ViT holds what each position brings in every layer."""


def sums_gap(bundle: Bundle, device: str, samples: Samples, progress: bool = False) -> float:
    """The largest difference of a row and its sum over all images; infinity where it does not run.

    The graph for it holds the image graph's weights once more: have no engine open beside it.
    """
    manifest = bundle.manifest
    explain = manifest.explain
    assert explain is not None
    worst = 0.0
    images = [preprocess(image, manifest.image) for image in samples.images]
    try:
        graph = open_explain_graph(bundle, manifest, device, None)
        starts = range(0, len(images), _BATCH)
        for start in progress_bar(starts, len(images), "adding up", "image", progress, _BATCH):
            batch = np.stack(images[start : start + _BATCH])
            rows, parts, constant = run_in_parts(graph, batch, manifest)
            total = parts.astype(np.float64).sum((1, 2)) + constant
            if explain.unit_rows:
                total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)
            gap = np.abs(total - rows).max(1) / np.maximum(np.abs(rows).max(1), 1e-20)
            worst = max(worst, float(gap.max()) if np.isfinite(gap).all() else float("inf"))
    except (BundleError, DeviceError):
        return float("inf")
    return worst
