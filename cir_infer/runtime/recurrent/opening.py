"""From a bundle's text graph to a recurrent encoder that may be trusted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import DeviceError
from cir_infer.gpu.device import Device
from cir_infer.runtime.graph import Graph
from cir_infer.runtime.parity import differences, fault_of
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.text_graph import match_text_graph

__all__ = ["check_encoder", "open_encoder"]

_EVERY = 32
"""Every length up to this one is checked; beyond, each time half as long again, and the longest."""
_AT_ONCE = 16


def open_encoder(model: Model, device: Device, most_tokens: int) -> RecurrentEncoder:
    """The encoder that a text graph is, on a GPU.

    Args:
        model: the graph.
        device: the GPU.
        most_tokens: of a text.

    Raises:
        NoKernelError: the graph is another, or its layer does not fit this GPU.
        DeviceError: the kernel was not compiled for it, or memory is short.
        BundleError: the model cannot be read.
    """
    return RecurrentEncoder(match_text_graph(read_onnx_model(model.data, model.weights)), device, most_tokens)


def check_encoder(
    encoder: RecurrentEncoder, reference: Graph, most_tokens: int, furthest: float
) -> dict[str, Any]:
    """Compare an encoder with the same graph elsewhere: random words, every length to 32 and some beyond.

    Args:
        encoder: what is to be trusted.
        reference: what is trusted, ONNX Runtime on the CPU.
        most_tokens: the longest text.
        furthest: what passes, see `cir_infer.runtime.parity.FURTHEST`.

    Returns:
        The worst cosine and the largest difference, the longest text, and which kernel it was.

    Raises:
        DeviceError: they differ.
    """
    random = np.random.default_rng(0)
    worst, largest = 1.0, 0.0
    lengths = _lengths(most_tokens)
    for start in range(0, len(lengths), _AT_ONCE):
        part = np.array(lengths[start : start + _AT_ONCE], np.int32)
        tokens = random.integers(0, encoder.vocabulary, (len(part), part.max())).astype(np.int32)
        feeds = {"tokens": tokens, "lengths": part}
        expected = reference.run(feeds)["text"].astype(np.float64)
        found = encoder.run(feeds)["text"].astype(np.float64)
        compared = differences(expected, found)
        if (fault := fault_of(compared, furthest)) is not None:
            at, said = fault
            raise DeviceError(
                f"the recurrent kernel gives another text embedding than ONNX Runtime on the CPU: at "
                f"{part[at]} tokens {said}; the text encoder runs elsewhere"
            )
        worst = min(worst, float(compared.cosines.min()))
        largest = max(largest, float(np.abs(expected - found).max()))
    return {
        "worst_cosine": worst,
        "largest_difference": largest,
        "longest": lengths[-1],
        "version": encoder.version,
    }


def _lengths(most: int) -> list[int]:
    beyond = itertools.takewhile(
        lambda length: length < most, (int(_EVERY * 1.5**i) for i in itertools.count(1))
    )
    return sorted({*range(1, min(_EVERY, most) + 1), *beyond, most})
