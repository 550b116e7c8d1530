"""Where the text encoder runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cir_infer.runtime.graph import Graph
from cir_infer.runtime.samples import sample_feeds

__all__ = ["choose_placement"]

_TIMED_LENGTHS = (8, 20)
_TIMED_RUNS = 30


def choose_placement(
    candidates: Mapping[str, Graph], refused: Mapping[str, str], most_tokens: int
) -> dict[str, Any]:
    """Time one text on every side, by turns, and take the fastest.

    Args:
        candidates: by name: "cpu" (ONNX Runtime), and what was found to be right of "tensorrt" and "kernel".
        refused: the others, and why.
        most_tokens: that a text may have.

    Returns:
        {"chosen": a candidate's name, "cpu_ms" and so on: medians over the lengths, "lengths", "refused"}; no
        times where there is nothing to choose from.
    """
    if len(candidates) == 1:
        return {"chosen": next(iter(candidates)), "refused": dict(refused)}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    inputs = {tensor.name: tensor for graph in candidates.values() for tensor in graph.inputs}
    lengths = sorted({min(length, most_tokens) for length in _TIMED_LENGTHS})
    for length in lengths:
        feeds = sample_feeds([*inputs.values()], 1, length)
        for run in range(_TIMED_RUNS):
            for name, graph in candidates.items():
                own = {tensor.name: feeds[tensor.name] for tensor in graph.inputs}
                begun = time.perf_counter()
                graph.run(own)
                if run >= _TIMED_RUNS // 5:  # the first fifth warms up
                    times[name].append(1e3 * (time.perf_counter() - begun))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "chosen": min(medians, key=lambda name: medians[name]),
        **{f"{name}_ms": round(median, 4) for name, median in medians.items()},
        "lengths": lengths,
        "refused": dict(refused),
    }
