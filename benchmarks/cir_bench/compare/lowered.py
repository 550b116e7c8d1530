"""Lower precisions, ours and what else a user would turn on, and whether they pass our own bundles' gate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cir_bench.compare.alternatives import Alternative, Ours, Question, RuntimeAlone
from cir_infer.bundle import Bundle
from cir_infer.engine import Engine
from cir_infer.errors import DeviceError
from cir_infer.extras import is_installed

__all__ = ["lowered_ways", "passing"]

_CALIBRATED = 16
"""Images that int8 is calibrated with here: enough for generated ones, on which it is also judged."""


def lowered_ways(
    engine: Engine, images: Sequence[Any], folder: Path, rows: npt.NDArray[np.float32], k: int
) -> list[Alternative]:
    """The bundle in int8 and bfloat16, ours on whatever runs it here, and int8 in ONNX Runtime alone.

    `passing` judges them.

    Args:
        engine: on the float32 bundle.
        images: of which some are calibrated with, as `preprocess` takes them.
        folder: for the bundles.
        rows: float32 (N, D), the gallery.
        k: hits a query.
    """
    int8 = _lowered(engine, "int8", images, folder)
    on_cpu = Engine(int8, "cpu", engine.threads)
    ways = [
        Ours(on_cpu, rows, k).alternative(),
        RuntimeAlone("ONNX Runtime int8", on_cpu, rows, k, "int8").alternative(),
    ]
    if is_installed("openvino"):
        ways.append(Ours(Engine(int8, "openvino", engine.threads), rows, k).alternative())
        bfloat16 = _lowered(engine, "bfloat16", images, folder)
        with suppress(DeviceError):  # a processor that does not compute it
            ways.append(Ours(Engine(bfloat16, "openvino", engine.threads), rows, k).alternative())
    return ways


def _lowered(
    engine: Engine, precision: Literal["int8", "bfloat16"], images: Sequence[Any], folder: Path
) -> Path:
    from cir_export.precision.calibration import calibration_texts, texts_read
    from cir_export.precision.graphs import lower_graphs
    from cir_export.precision.writing import write_with

    bundle = Bundle(engine.path)
    batch = np.stack([engine.prepare(image) for image in images[:_CALIBRATED]])
    texts = partial(texts_read, bundle, calibration_texts(bundle)) if engine.needs_text else None
    graphs = lower_graphs(bundle, precision, "cpu", (), lambda: [batch], texts)
    models = {bundle.manifest.graphs[graph.name]: graph.model for graph in graphs}
    target = folder / f"{precision}.cir"
    write_with(bundle, target, replace(bundle.manifest, precision=precision, explain=None), models)
    return target


def passing(
    ours: Alternative, ways: Sequence[Alternative], questions: Sequence[Question]
) -> tuple[list[Alternative], dict[str, str]]:
    """The ways whose embeddings pass the gate of their precision, and why others are left out."""
    from cir_export.precision.fidelity import cosines
    from cir_export.precision.gate import LIMITS

    expected = _embeddings(ours, questions)
    kept, left_out = [], {}
    for way in ways:
        least = next((limit.cosine for name, limit in LIMITS.items() if name == way.precision), 1.0)
        worst = float(cosines(expected, _embeddings(way, questions)).min())  # NaN where one is
        if worst >= least:
            kept.append(way)
        else:
            left_out[way.name] = f"worst cosine of an embedding {worst:.5f}, and {least:g} is asked"
    return kept, left_out


def _embeddings(way: Alternative, questions: Sequence[Question]) -> npt.NDArray[np.float64]:
    return np.stack([np.asarray(way.encode(question), np.float64).reshape(-1) for question in questions])
