"""Inputs of no meaning for any graph: to warm up, to time, and to compare two backends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cir_infer.runtime.graph import Array, Tensor

__all__ = ["SAMPLE_TOKENS", "Feeds", "Samples", "sample_feeds"]

SAMPLE_TOKENS = 8
"""Of a text, where the bundle's may have as many."""

Feeds = dict[str, Array]


class Samples(NamedTuple):
    """One of each.

    Attributes:
        image: prepared, (1, ...).
        reference: its embedding as queries see it, float32 (1, ...).
        text: a text's embedding, float32 (1, ...); None for a system that reads no text.
    """

    image: Array
    reference: Array
    text: Array | None


def sample_feeds(inputs: Sequence[Tensor], rows: int, tokens: int, seed: int = 0) -> Feeds:
    """Inputs to compare and to time with.

    Args:
        inputs: of the graph, whatever they are: whether they are a bundle's is looked at later.
        rows: how many; texts get lengths from 1 to `tokens`, the longest first.
        tokens: the longest text.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    feeds: Feeds = {}
    for tensor in inputs:
        if tensor.name == "lengths":
            lengths = np.maximum(tokens - np.arange(rows) * max(1, tokens // rows), 1)
            feeds[tensor.name] = lengths.astype(tensor.dtype)
            continue
        shape = [rows, *(tokens if length is None else length for length in tensor.shape[1:])]
        if tensor.name == "tokens":
            # Every vocabulary has its special tokens and a few words.
            feeds[tensor.name] = random.integers(1, 5, shape).astype(tensor.dtype)
        elif tensor.dtype.kind != "f" and len(shape) != 4:
            feeds[tensor.name] = random.integers(0, 128, shape).astype(tensor.dtype)
        elif tensor.dtype.kind != "f":
            # Coarse blotches: noise would average out in any encoder.
            coarse = random.integers(0, 256, (rows, 8, 8, *shape[3:]), dtype=np.uint8)
            tall, wide = -(-shape[1] // 8), -(-shape[2] // 8)
            image = coarse.repeat(tall, 1).repeat(wide, 2)[:, : shape[1], : shape[2]]
            feeds[tensor.name] = np.ascontiguousarray(image, tensor.dtype)
        else:
            values = random.standard_normal(shape).astype(tensor.dtype)
            flat = values.reshape(rows, -1)
            flat /= np.linalg.norm(flat, axis=1, keepdims=True)
            feeds[tensor.name] = values
    return feeds
