"""A graph elsewhere against ONNX Runtime on the CPU, before anyone relies on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from cir_infer.errors import DeviceError, shown
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.samples import sample_feeds

__all__ = ["FURTHEST", "LEAST_COSINE", "check_parity"]

LEAST_COSINE = {"float32": 0.9999, "float16": 0.999, "int8": 0.99}
"""By the bundle's precision. Both sides run the same graph; what is left is the order of sums, and for lower
precisions where a processor computes more exactly than the graph says."""

FURTHEST = 1e-3
"""Of a row's largest value, how far apart two values of float32 may be where both sides are processors. Rows
that have much in common have a cosine of one, whatever tells them from each other."""

_LENGTHS = (1, 2, 7, 24)


def check_parity(
    what: str,
    tried: Graph,
    reference: Graph,
    most_rows: int,
    most_tokens: int,
    least: float,
    instead: str,
    furthest: float = float("inf"),
) -> dict[str, Any]:
    """Compare a graph with the same graph elsewhere: one row and several, texts of every kind of length.

    Args:
        what: is tried, for messages.
        tried: what is to be trusted.
        reference: what is trusted, ONNX Runtime on the CPU.
        most_rows: the largest batch.
        most_tokens: the longest text.
        least: the least cosine that passes, see `LEAST_COSINE`.
        instead: what to do where they differ.
        furthest: the largest difference that passes, of a row's largest value, see `FURTHEST`.

    Returns:
        The worst cosine between rows of outputs and the largest difference, with what was compared.

    Raises:
        DeviceError: they differ.
    """
    is_text = any(tensor.name == "tokens" for tensor in tried.inputs)
    lengths = [length for length in _LENGTHS if length <= most_tokens] if is_text else [1]
    shapes = [(rows, length) for length in lengths for rows in (1, min(3, most_rows))]
    worst, largest = 1.0, 0.0
    for rows, tokens in shapes:
        feeds = sample_feeds(reference.inputs, rows, tokens, seed=rows + 7 * tokens)
        expected = reference.run(feeds)
        found = tried.run({tensor.name: feeds[tensor.name] for tensor in tried.inputs})
        for output, value in expected.items():
            cosine, difference, relative = _compared(value, found[output])
            worst, largest = min(worst, cosine), max(largest, difference)
            fault = ""
            if not cosine >= least:  # also NaN
                fault = f"cosine {cosine:.5f} over {rows} rows, expected at least {least}"
            elif not relative <= furthest:
                fault = (
                    f"values differ by {relative:.2g} of a row's largest over {rows} rows, expected at most "
                    f"{furthest:g}"
                )
            if fault:
                raise DeviceError(
                    f"{what} gives another {shown(output)} than ONNX Runtime on the CPU: {fault}; {instead}"
                )
    return {"worst_cosine": worst, "largest_difference": largest, "shapes": [list(shape) for shape in shapes]}


def _compared(expected: Array, found: Array) -> tuple[float, float, float]:
    """The worst cosine of two rows, the largest difference, and that as a part of its row's largest value."""
    if expected.shape != found.shape:
        return float("nan"), float("inf"), float("inf")
    if not expected.size:
        return 1.0, 0.0, 0.0
    a = expected.reshape(len(expected), -1).astype(np.float64)
    b = found.reshape(len(found), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).max(1) == 0) & (np.abs(b).max(1) == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(both_zero, 1.0, (a * b).sum(1) / norms)
    apart = np.abs(a - b).max(1)
    relative = apart / np.maximum(np.abs(a).max(1), np.finfo(np.float32).tiny)
    return float(cosines.min()), float(apart.max()), float(relative.max())
