"""Whether the gallery rows of a bundle are the sums over positions that it says, held against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cir_export.graphs import EXPLAIN
from cir_export.model_file import TrainedModel
from cir_export.preprocessing import check_inputs
from cir_export.samples import Samples
from cir_export.verification.parity import IN_PARTS, TOLERANCE, Answers, Check, relative
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import Explain
from cir_infer.console.progress import progress_bar
from cir_infer.errors import BundleError, DeviceError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.runtime.explain_graph import open_explain_graph, run_in_parts
from cir_infer.runtime.graph import Array

__all__ = ["compare_sums", "explain_of", "why_unexplained"]

_SEVERAL = 4


def explain_of(trained: TrainedModel, samples: Samples) -> Explain:
    """What a manifest says of the explaining graph: its grid, and whether rows are divided by their norm."""
    pixels = _pixels(trained, samples, _SEVERAL)
    with torch.inference_mode():
        found = trained.model.encode_gallery_in_parts(torch.from_numpy(pixels))
    assert found is not None  # it gave a graph
    height, width = found.parts.shape[1:3]
    norms = found.rows.norm(dim=-1)
    unit_rows = bool(((norms - 1).abs() < TOLERANCE).all())
    return Explain(f"{EXPLAIN}.onnx", height, width, unit_rows)


def compare_sums(
    trained: TrainedModel,
    answers: Answers,
    bundle: Bundle,
    rows: Array,
    samples: Samples,
    progress: bool = False,
) -> list[Check]:
    """Rows of the image graph against the sums, and the sums' parts against PyTorch's.

    Differences are relative to the largest value of a row, and of all parts of an image. The explaining
    graph holds all weights of the image graph once more: it is opened when the engine that made the rows is
    closed.

    Args:
        trained: the model, of which only the preprocessing is looked at.
        answers: PyTorch's, with their parts.
        bundle: with its explaining graph.
        rows: the engine's, of the same samples.
        samples: the same.
        progress: say how far it is.
    """
    manifest = bundle.manifest
    assert manifest.explain is not None
    pixels = _pixels(trained, samples, len(samples.images))
    said = f"{len(pixels)} images"
    sums, again, parts = [], [], []
    try:
        graph = open_explain_graph(bundle, manifest, "cpu", None)
        every = zip(_batches(pixels), _batches(rows), answers.parts, strict=True)
        for batch, made_before, expected in progress_bar(
            every, len(pixels), "adding up", "image", progress, IN_PARTS
        ):
            found = run_in_parts(graph, batch, manifest)
            total = found.parts.astype(float).sum((1, 2)) + found.constant
            if manifest.explain.unit_rows:
                total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)
            sums.append(relative(total, made_before))
            again.append(relative(found.rows, made_before))
            n = len(batch)
            parts.append(
                max(
                    relative(_flat(found.parts, n), _flat(expected.parts, n)),
                    relative(_flat(found.constant, n), _flat(expected.constant, n)),
                )
            )
    except (BundleError, DeviceError) as error:
        return [Check(f"the explaining graph does not run: {error}", said, float("inf"), TOLERANCE)]
    return [
        Check("rows as sums over positions", said, max(sums), TOLERANCE),
        Check("rows of the explaining graph", said, max(again), TOLERANCE),
        Check("parts of the sums", said, max(parts), TOLERANCE),
    ]


def _batches(values: Array) -> list[Array]:
    return [values[start : start + IN_PARTS] for start in range(0, len(values), IN_PARTS)]


def why_unexplained(trained: TrainedModel, checks: Sequence[Check]) -> str:
    """Why a bundle holds no graph that explains rows."""
    failed = [check for check in checks if not check.passed]
    if failed:
        return f"{failed[0].what}: differs by {failed[0].difference:.1e}, at most {TOLERANCE:.0e} is accepted"
    if trained.image["kind"] == "features":
        return "it takes features, which have no positions"
    return "its gallery rows are no sums over positions of a map"


def _pixels(trained: TrainedModel, samples: Samples, count: int) -> Array:
    spec = check_inputs(trained.image, trained.text)
    return np.stack([preprocess(image, spec) for image in samples.images[:count]])


def _flat(values: Array, n: int) -> Array:
    return values.reshape(n, -1)
