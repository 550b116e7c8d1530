"""Batch-based classification with a learnable temperature (ARTEMIS, sec. 3.3; TIRG, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["batch_classification_loss", "negative_set_loss"]


def batch_classification_loss(scores: Tensor, own: Tensor, logit_scale: Tensor) -> Tensor:
    """Cross-entropy of each query's own target against all targets of the batch.

    loss = mean_i -log( exp(gamma s_i,own(i)) / sum_j exp(gamma s_ij) ),  gamma = exp(logit_scale)

    A target that several queries of the batch share stands in it once, as it is no negative of either.

    Args:
        scores: float32 (B, T); s_ij is the score of query i against the j-th distinct target.
        own: int64 (B,), the column of each query's own target.
        logit_scale: scalar, the logarithm of gamma.

    Returns:
        float32 scalar.
    """
    return functional.cross_entropy(scores * logit_scale.exp(), own)


def negative_set_loss(scores: Tensor, own: Tensor, logit_scale: Tensor, size: int, sets: int) -> Tensor:
    """Telling a query's target from K - 1 negatives at a time (TIRG, eq. 4 to 6).

    loss = mean_i mean_m -log( exp(gamma s_i,own(i)) / sum_{j in N_i^m} exp(gamma s_ij) )

    N_i^m holds the query's own target and K - 1 others of the batch. With K = 2 and M = B - 1 every other
    target is the negative once, eq. 6: the mean of log(1 + exp(gamma (s_ij - s_i,own(i)))). Else the sets
    are drawn.

    Args:
        scores: float32 (B, T), as for `batch_classification_loss`.
        own: int64 (B,), the column of each query's own target.
        logit_scale: scalar, the logarithm of gamma.
        size: K, at least 2; at most T is used.
        sets: M; 0 means T - 1 for K = 2, else 1.

    Returns:
        float32 scalar; 0 where there is no other target.
    """
    count = scores.shape[1]
    if count < 2:
        return scores.sum() * 0.0
    others = torch.arange(count, device=scores.device).expand(len(scores), -1)
    others = others[others != own[:, None]].view(len(scores), count - 1)
    logits = scores * logit_scale.exp()
    positive, negatives = logits.gather(1, own[:, None]), logits.gather(1, others)
    if size == 2 and sets in (0, count - 1):
        return functional.softplus(negatives - positive).mean()
    drawn = []
    for _ in range(max(1, sets)):
        order = torch.rand(negatives.shape, device=scores.device).argsort(1)[:, : size - 1]
        drawn.append(functional.cross_entropy(
            torch.cat([positive, negatives.gather(1, order)], 1), torch.zeros_like(own)
        ))  # fmt: skip
    return torch.stack(drawn).mean()
