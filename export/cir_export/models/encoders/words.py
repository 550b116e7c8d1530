"""Words that wait for the image: how many, then their vectors, in a row of fixed length."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["padded_words", "read_words"]

_HIDDEN = -1e4
"""Added to the attention of what is not there; within float16's range."""


def padded_words(words: Tensor, lengths: Tensor, most: int) -> Tensor:
    """Their number, at most `most`, then as many vectors, zero beyond the last.

    Args:
        words: float (n, T, W).
        lengths: int (n,).
        most: words kept of a text.

    Returns:
        float (n, 1 + most * W).
    """
    rest = words.new_zeros(words.shape[0], most, words.shape[2])
    words = torch.cat([words, rest], 1)[:, :most]
    lengths = lengths.to(words.device).clamp_max(most)[:, None]
    steps = torch.arange(most, device=words.device)
    words = words * (steps < lengths)[:, :, None]
    return torch.cat([lengths.to(words.dtype), words.flatten(1)], 1)


def read_words(text: Tensor, most: int, shorten: bool = False) -> tuple[Tensor, Tensor]:
    """What `padded_words` made: vectors (n, T, W), and what hides those beyond the last in attention (n, T).

    Args:
        text: as `padded_words` gives it.
        most: its `most`.
        shorten: T is the longest text's length in place of `most`. Attention hides what is left out, so
            nothing changes but the time; for training alone, as a graph has no such length.
    """
    words = text[:, 1:].reshape(text.shape[0], most, -1)
    if shorten:
        words = words[:, : max(1, int(text[:, 0].max()))]
    steps = torch.arange(words.shape[1], device=text.device)
    hidden = (steps >= text[:, :1]).to(words.dtype) * _HIDDEN
    return words, hidden
