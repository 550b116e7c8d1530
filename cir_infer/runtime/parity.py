"""A graph elsewhere against ONNX Runtime on the CPU, before anyone relies on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from cir_infer.errors import DeviceError, shown
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.samples import sample_feeds

__all__ = ["LEAST_COSINE", "check_parity"]

LEAST_COSINE = {"float32": 0.9999, "float16": 0.999, "int8": 0.99}
"""By the bundle's precision. Both sides run the same graph; what is left is the order of sums, and for lower
precisions where a processor computes more exactly than the graph says."""

_LENGTHS = (1, 2, 7, 24)


def check_parity(
    what: str,
    tried: Graph,
    reference: Graph,
    most_rows: int,
    most_tokens: int,
    least: float,
    instead: str,
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
        feeds = sample_feeds(tried.inputs, rows, tokens, seed=rows + 7 * tokens)
        expected, found = reference.run(feeds), tried.run(feeds)
        for output, value in expected.items():
            cosine, difference = _compared(value, found[output])
            worst, largest = min(worst, cosine), max(largest, difference)
            if not cosine >= least:  # also NaN
                raise DeviceError(
                    f"{what} gives another {shown(output)} than ONNX Runtime on the CPU: cosine "
                    f"{cosine:.5f} over {rows} rows, expected at least {least}; {instead}"
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
