"""A graph elsewhere against ONNX Runtime on the CPU, before anyone relies on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cir_infer.bundle.onnx_model import OnnxModel
from cir_infer.errors import DeviceError, shown
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.samples import sample_feeds

__all__ = ["FURTHEST", "Differences", "check_parity", "computes_in", "differences", "fault_of"]

FURTHEST = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 6.3e-2, "int8": 0.14}
"""How far two rows of one graph may be apart, by what it computes in: the difference's length as a part of
the row's, and each value's difference as a part of the row's largest value.

A cosine would not do: rows that have much in common have one of 1, whatever tells them from each other, and
it sees no length, which scores without weights depend on. In a lower precision two rows are so far apart that
are both as far from float32's, each its own way, as `cir-export`'s gate lets them be. Right graphs of every
system, and of encoders up to ViT-B, stay below an eighth of it, those of bfloat16 and int8 below a fourth."""

_LENGTHS = (1, 2, 7, 24)

_VECTORS = ("embedding", "numerators", "weights")
"""Outputs of which each vector counts for itself where there are several: of a gallery row, or one a term."""


class Differences(NamedTuple):
    """Of pairs of vectors, float64 (n,) each; NaN where a value is no number.

    Attributes:
        cosines: between the two.
        lengths: of the difference, as a part of the expected vector's.
        values: the largest difference of a value, as a part of the expected vector's largest.
    """

    cosines: Array
    lengths: Array
    values: Array


def computes_in(graph: OnnxModel) -> str:
    """A graph's precision, whatever its bundle's: "int8", "float16", "bfloat16" or "float32".

    Compose is float32 in every bundle, a text encoder in most of those in int8.
    """
    if any(node.op == "QuantizeLinear" for node in graph.nodes):
        return "int8"
    if any(node.op == "Cast" and node.attributes.get("to") == _HALF for node in graph.nodes) or any(
        constant.dtype == np.float16 for constant in graph.constants.values()
    ):
        return "float16"
    return "bfloat16" if graph.stores_bfloat16 else "float32"


_HALF = 10
"""ONNX's number of float16."""


def differences(expected: Array, found: Array) -> Differences:
    """Compare what should be the same.

    Args:
        expected: (n, ...), each flattened to one vector.
        found: the same shape.
    """
    a, b = (part.reshape(len(part), -1).astype(np.float64) for part in (expected, found))
    if not a.size:
        nothing = np.zeros(len(a))
        return Differences(np.ones(len(a)), nothing, nothing)
    same = (a == b).all(1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        norms = np.linalg.norm(a, axis=1)
        cosines = (a * b).sum(1) / (norms * np.linalg.norm(b, axis=1))
        lengths = np.linalg.norm(a - b, axis=1) / norms
        values = np.abs(a - b).max(1) / np.abs(a).max(1)
    # Zeros are like zeros alone.
    return Differences(
        np.where(same, 1.0, cosines), *(np.where(same, 0.0, part) for part in (lengths, values))
    )


def fault_of(found: Differences, furthest: float) -> tuple[int, str] | None:
    """The vector that is furthest off and what is wrong with it, in words; None where all are near enough.

    Args:
        found: see `differences`.
        furthest: see `FURTHEST`.
    """
    apart = np.maximum(found.lengths, found.values)  # NaN where either is
    if (apart <= furthest).all():
        return None
    at = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    if not np.isfinite(apart[at]):
        return at, "NaN, infinity, or other numbers in place of zeros"
    worst, of = max((found.values[at], "a row's largest value"), (found.lengths[at], "a row's length"))
    return (
        at,
        f"rows differ by {worst:.2g} of {of} (cosine {found.cosines[at]:.5f}), expected at most {furthest:g}",
    )


def check_parity(
    what: str,
    tried: Graph,
    reference: Graph,
    precision: str,
    most_rows: int,
    most_tokens: int,
    instead: str,
) -> dict[str, Any]:
    """Compare a graph with the same graph elsewhere: one row and several, texts of every kind of length.

    Args:
        what: is tried, for messages.
        tried: what is to be trusted.
        reference: what is trusted, ONNX Runtime on the CPU.
        precision: of the graph, see `computes_in`; how far apart they may be is `FURTHEST`.
        most_rows: the largest batch.
        most_tokens: the longest text.
        instead: what to do where they differ.

    Returns:
        The worst cosine between rows of outputs, the largest difference and `furthest`, the largest as
        `FURTHEST` counts it, with what was compared.

    Raises:
        DeviceError: they differ.
    """
    is_text = any(tensor.name in ("tokens", "lengths") for tensor in reference.inputs)
    lengths = [length for length in _LENGTHS if length <= most_tokens] if is_text else [1]
    shapes = [(rows, length) for length in lengths for rows in (1, min(3, most_rows))]
    worst, largest, furthest = 1.0, 0.0, 0.0
    for rows, tokens in shapes:
        feeds = sample_feeds(reference.inputs, rows, tokens, seed=rows + 7 * tokens)
        expected = reference.run(feeds)
        found = tried.run({tensor.name: feeds[tensor.name] for tensor in tried.inputs})
        for output, value in expected.items():
            given = found[output]
            if given.shape != value.shape:
                fault = f"shape {given.shape}, expected {value.shape}"
                raise DeviceError(_refusal(what, output, fault, rows, instead))
            if not np.isfinite(value).all():
                raise DeviceError(
                    f"{what} cannot be held against ONNX Runtime on the CPU: there {shown(output)} is NaN or "
                    f"infinite, over {rows} rows; use a bundle of another precision"
                )
            several = output in _VECTORS and value.ndim == 3
            parts = [part.reshape(-1, part.shape[-1]) if several else part for part in (value, given)]
            compared = differences(*parts)
            if (fault_found := fault_of(compared, FURTHEST[precision])) is not None:
                raise DeviceError(_refusal(what, output, fault_found[1], rows, instead))
            worst = min(worst, float(compared.cosines.min(initial=1.0)))
            largest = max(largest, float(np.abs(np.subtract(*parts, dtype=np.float64)).max(initial=0.0)))
            furthest = max(furthest, *(float(part.max(initial=0.0)) for part in compared[1:]))
    return {
        "worst_cosine": worst,
        "largest_difference": largest,
        "furthest": furthest,
        "shapes": [list(shape) for shape in shapes],
    }


def _refusal(what: str, output: str, fault: str, rows: int, instead: str) -> str:
    where = f"than ONNX Runtime on the CPU: {fault}, over {rows} rows"
    return f"{what} gives another {shown(output)} {where}; {instead}"
