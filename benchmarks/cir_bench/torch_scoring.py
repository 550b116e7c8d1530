"""Scoring as it is done in PyTorch: literally, as the authors loop it, and as two matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["literal_scores", "ranked", "two_product_scores"]


def literal_scores(numerators: Tensor, weights: Tensor | None, rows: Tensor) -> Tensor:
    """One query over a gallery by the formula of the paper, elementwise over all rows.

    A weighted term is < y, l2(a o t) > with a = sqrt(w) and y = n / a, which is l2(a o r) for ARTEMIS'
    implicit similarity and l2(T m) for its explicit matching. Per term: weigh every row, normalise it,
    multiply, sum: six passes over an (N, D) array, as in naver/artemis.

    Args:
        numerators: (J, D).
        weights: (J, D) or None.
        rows: (N, D).

    Returns:
        (N,) scores.
    """
    import torch

    scores = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    for term in range(len(numerators)):
        if weights is None:
            scores = scores + (numerators[term] * rows).sum(1)
            continue
        attention = weights[term].sqrt()
        weighed = attention * rows
        unit = weighed / weighed.pow(2).sum(1, keepdim=True).sqrt()
        scores = scores + ((numerators[term] / attention) * unit).sum(1)
    return scores


def two_product_scores(numerators: Tensor, weights: Tensor | None, rows: Tensor, squares: Tensor) -> Tensor:
    """Q queries over a gallery as matrix products with the rows and with their squares.

    Args:
        numerators: (Q, J, D).
        weights: (Q, J, D) or None.
        rows: (N, D).
        squares: (N, D), rows o rows, kept beside them.

    Returns:
        (Q, N) scores.
    """
    values = numerators @ rows.T
    if weights is not None:
        values = values * (weights @ squares.T).clamp_min(1e-20).rsqrt()
    return values.sum(1)


def ranked(scores: Tensor, k: int) -> Tensor:
    """The first k of a whole sort, as the authors rank: (..., k) row numbers."""
    return scores.sort(-1, descending=True).indices[..., :k]
