"""Batch-based classification with a learnable temperature (ARTEMIS, sec. 3.3; TIRG, eq. 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["batch_classification_loss"]


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
