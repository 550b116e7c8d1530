"""A new plan against ONNX Runtime on the CPU, before anyone relies on it; and where the text encoder runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cir_infer.errors import DeviceError, shown
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.samples import sample_feeds

__all__ = ["LEAST_COSINE", "check_parity", "choose_placement"]

LEAST_COSINE = {"float32": 0.9999, "float16": 0.999, "int8": 0.99}
"""By the bundle's precision. Both sides run the same graph; what is left is the order of sums, and for lower
precisions where a processor computes more exactly than the graph says."""

_LENGTHS = (1, 2, 7, 24)
_TIMED_LENGTHS = (8, 20)
_TIMED_RUNS = 30


def check_parity(
    name: str, plan: Graph, reference: Graph, most_rows: int, most_tokens: int, least: float
) -> dict[str, Any]:
    """Compare a plan with the same graph elsewhere: one row and several, texts of every kind of length.

    Args:
        name: the graph's name.
        plan: what is to be trusted.
        reference: what is trusted, ONNX Runtime on the CPU.
        most_rows: the plan's largest batch.
        most_tokens: the plan's longest text.
        least: the least cosine that passes, see `LEAST_COSINE`.

    Returns:
        The worst cosine between rows of outputs and the largest difference, with what was compared.

    Raises:
        DeviceError: they differ.
    """
    is_text = any(tensor.name == "tokens" for tensor in plan.inputs)
    lengths = [length for length in _LENGTHS if length <= most_tokens] if is_text else [1]
    shapes = [(rows, length) for length in lengths for rows in (1, min(3, most_rows))]
    worst, largest = 1.0, 0.0
    for rows, tokens in shapes:
        feeds = sample_feeds(plan.inputs, rows, tokens, seed=rows + 7 * tokens)
        expected, found = reference.run(feeds), plan.run(feeds)
        for output, value in expected.items():
            cosine, difference = _compared(value, found[output])
            worst, largest = min(worst, cosine), max(largest, difference)
            if not cosine >= least:  # also NaN
                raise DeviceError(
                    f"the plan of the {name} graph gives another {shown(output)} than ONNX Runtime on the "
                    f"CPU: cosine {cosine:.5f} over {rows} rows, expected at least {least}; use "
                    "device='cuda', or a bundle of another precision"
                )
    return {"worst_cosine": worst, "largest_difference": largest, "shapes": [list(shape) for shape in shapes]}


def _compared(expected: Array, found: Array) -> tuple[float, float]:
    if expected.shape != found.shape:
        return float("nan"), float("inf")
    a = expected.reshape(len(expected), -1).astype(np.float64)
    b = found.reshape(len(found), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).max(1) == 0) & (np.abs(b).max(1) == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(both_zero, 1.0, (a * b).sum(1) / norms)
    return float(cosines.min()), float(np.abs(a - b).max())


def choose_placement(candidates: Mapping[str, Graph], refused: Mapping[str, str]) -> dict[str, Any]:
    """Time one text on every side, by turns, and take the fastest.

    Args:
        candidates: by name: "cpu" (ONNX Runtime), and what was found to be right of "tensorrt" and "kernel".
        refused: the others, and why.

    Returns:
        {"chosen": a candidate's name, "cpu_ms" and so on: medians over the lengths, "lengths", "refused"}; no
        times where there is nothing to choose from.
    """
    if len(candidates) == 1:
        return {"chosen": next(iter(candidates)), "refused": dict(refused)}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    inputs = next(iter(candidates.values())).inputs
    for length in _TIMED_LENGTHS:
        feeds = sample_feeds(inputs, 1, length)
        for run in range(_TIMED_RUNS):
            for name, graph in candidates.items():
                begun = time.perf_counter()
                graph.run(feeds)
                if run >= _TIMED_RUNS // 5:  # the first fifth warms up
                    times[name].append(1e3 * (time.perf_counter() - begun))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "chosen": min(medians, key=lambda name: medians[name]),
        **{f"{name}_ms": round(median, 4) for name, median in medians.items()},
        "lengths": list(_TIMED_LENGTHS),
        "refused": dict(refused),
    }
