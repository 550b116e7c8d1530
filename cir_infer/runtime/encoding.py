"""Batches of prepared images through a graph, with what becomes of those that could not be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import CirError, ImageError
from cir_infer.inputs.preparing import Prepared
from cir_infer.runtime.graph import Array, Graph

__all__ = ["Encoded", "OnError", "encode_batches", "stacked"]

OnError = Literal["raise", "return"]
"""What to do with one bad image or query among several: raise its error, or return it and go on."""


class Encoded(NamedTuple):
    """Embeddings of images of which some could not be read.

    Attributes:
        rows: float32 (N, ...), one for each image that was given; NaN for those that failed.
        failed: the errors of those, by their number from 0.
    """

    rows: npt.NDArray[np.float32]
    failed: dict[int, CirError]


def encode_batches(graph: Graph, output: str, batches: Iterable[Prepared], errors: OnError) -> Encoded:
    """Run a graph over batches of images.

    Args:
        graph: takes `image`.
        output: the name of what it gives.
        batches: prepared images, or the errors of those that could not be.
        errors: "raise" the first of them, or "return" them.

    Raises:
        ImageError: the first image that could not be read; the message counts from 0.
        DeviceError: the device failed.
    """
    failed: dict[int, CirError] = {}
    good: list[int] = []
    rows: list[npt.NDArray[np.float32]] = []
    for batch in batches:
        readable: list[Array] = []
        for number, prepared in enumerate(batch, start=len(good) + len(failed)):
            if isinstance(prepared, ImageError):
                error = ImageError(f"image {number}: {prepared}")
                error.__cause__ = prepared
                if errors == "raise":
                    raise error
                failed[number] = error
            else:
                good.append(number)
                readable.append(prepared)
        if readable:
            rows.append(graph.run({"image": stacked(readable)})[output])
    if not rows:
        rows.append(np.empty((0, *(length or 0 for length in graph.outputs[0].shape[1:])), np.float32))
    encoded = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if failed:
        whole = np.full((len(good) + len(failed), *encoded.shape[1:]), np.nan, np.float32)
        whole[good] = encoded
        encoded = whole
    return Encoded(encoded, failed)


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays of one shape, at least one, along a new first axis; one alone is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
