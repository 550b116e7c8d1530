"""Rivals in a lower precision: what a user would turn on, and whether it passes our own bundles' gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_bench.compare.alternatives import Alternative, Question, RuntimeAlone
from cir_infer.bundle import Bundle
from cir_infer.engine import Engine

__all__ = ["int8_on_onnx_runtime", "passing"]

_CALIBRATED = 16
"""Images that int8 is calibrated with here: enough for generated ones, on which it is also judged."""


def int8_on_onnx_runtime(
    engine: Engine, images: Sequence[Any], folder: Path, rows: npt.NDArray[np.float32], k: int
) -> Alternative:
    """The bundle's int8 form for a CPU on ONNX Runtime; `passing` judges it.

    Args:
        engine: on the float32 bundle.
        images: of which some are calibrated with, as `preprocess` takes them.
        folder: for the int8 bundle.
        rows: float32 (N, D), the gallery.
        k: hits a query.
    """
    from cir_export.precision.graphs import lower_graphs
    from cir_export.precision.writing import write_with

    bundle = Bundle(engine.path)
    batch = np.stack([engine.prepare(image) for image in images[:_CALIBRATED]])
    graphs = lower_graphs(bundle, "int8", "cpu", (), lambda: [batch])
    models = {bundle.manifest.graphs[graph.name]: graph.model for graph in graphs}
    target = folder / "int8.cir"
    write_with(bundle, target, replace(bundle.manifest, precision="int8", explain=None), models)
    lowered = Engine(target, "cpu", engine.threads)
    return RuntimeAlone("ONNX Runtime int8", lowered, rows, k, "int8").alternative()


def passing(
    ours: Alternative, ways: Sequence[Alternative], questions: Sequence[Question]
) -> tuple[list[Alternative], dict[str, str]]:
    """The ways whose embeddings pass the gate of their precision, and why others are left out."""
    from cir_export.precision.gate import LIMITS

    kept, left_out = [], {}
    for way in ways:
        least = next((limit.cosine for name, limit in LIMITS.items() if name == way.precision), 1.0)
        worst = min(_cosine(ours.encode(question), way.encode(question)) for question in questions)
        if worst >= least:
            kept.append(way)
        else:
            left_out[way.name] = f"worst cosine of an embedding {worst:.5f}, and {least:g} is asked"
    return kept, left_out


def _cosine(first: Any, second: Any) -> float:
    a, b = (np.asarray(value, np.float64).reshape(-1) for value in (first, second))
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-20))
