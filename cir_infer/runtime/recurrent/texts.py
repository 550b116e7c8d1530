"""What a recurrent encoder takes and gives, wherever it runs; unchecked, kernels would read beyond it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cir_infer.errors import DeviceError, shown
from cir_infer.runtime.graph import Array, Tensor
from cir_infer.runtime.recurrent.text_graph import RecurrentText

__all__ = ["INPUTS", "checked_texts", "output_of"]

_INTEGERS = np.dtype(np.int32)

INPUTS = (Tensor("tokens", _INTEGERS, (None, None)), Tensor("lengths", _INTEGERS, (None,)))


def output_of(text: RecurrentText) -> tuple[Tensor]:
    """The one output."""
    return (Tensor("text", np.dtype(np.float32), (None, text.out)),)


def checked_texts(
    feeds: Mapping[str, Array], vocabulary: int, most_tokens: int | None = None
) -> tuple[Array, Array]:
    """Tokens, cut to the longest text, and lengths.

    Args:
        feeds: the inputs by name.
        vocabulary: tokens are below this number; negative ones count from the end, as ONNX has it.
        most_tokens: of a text; None where as many as there are tokens will do.

    Raises:
        DeviceError: an input is missing or has another type or shape, a token is not in the vocabulary, or a
            length is beyond the tokens or the limit.
    """
    fits = set(feeds) == {"tokens", "lengths"}
    fits = fits and feeds["tokens"].dtype == feeds["lengths"].dtype == np.int32
    fits = fits and feeds["tokens"].ndim == 2 and feeds["lengths"].shape == feeds["tokens"].shape[:1]
    if not fits:
        given = {name: f"{value.dtype} {value.shape}" for name, value in feeds.items()}
        raise DeviceError(
            f"the text encoder takes int32 tokens (n, T) and int32 lengths (n,), not {shown(given)}"
        )
    tokens, lengths = feeds["tokens"], feeds["lengths"]
    if len(tokens) == 0:
        return tokens, lengths
    longest = tokens.shape[1] if most_tokens is None else min(tokens.shape[1], most_tokens)
    least, most = int(lengths.min()), int(lengths.max())
    if least < 1 or most > longest:
        raise DeviceError(
            f"the text encoder was given lengths from {least} to {most}; expected 1 to {longest}"
        )
    tokens = tokens[:, :most]
    first, last = int(tokens.min()), int(tokens.max())
    if first < -vocabulary or last >= vocabulary:
        raise DeviceError(
            f"the text encoder was given tokens from {first} to {last}; its vocabulary has {vocabulary}"
        )
    return (np.where(tokens < 0, tokens + vocabulary, tokens) if first < 0 else tokens), lengths
