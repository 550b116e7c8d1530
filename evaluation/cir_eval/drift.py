"""What another precision, row type or backend changes, against the same model in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cir_eval.evaluation import Evaluated

__all__ = ["drift_between"]


def drift_between(reference: Sequence[Evaluated], other: Sequence[Evaluated]) -> dict[str, Any]:
    """Differences of recall, agreement of the first ten, and angles between embeddings.

    Args:
        reference: the parts as the float32 bundle answers them.
        other: the same parts, answered otherwise.

    Returns:
        `metrics`: other minus reference in points, by part and metric; `top10_agreement`: share of the
        first ten that both have, mean and worst; `same_top1`: share of queries; `embedding_cosine`: of
        gallery rows, mean and worst.
    """
    cosines, shared, firsts = [], [], []
    metrics: dict[str, dict[str, float]] = {}
    for a, b in zip(reference, other, strict=True):
        # A row of several vectors is one of all their values.
        one, two = (part.rows.reshape(len(part.rows), -1) for part in (a, b))
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        cosines.append((one * two).sum(1, dtype=np.float64) / np.maximum(norms, 1e-30))
        for left, right in zip(a.rankings[:, :10].tolist(), b.rankings[:, :10].tolist(), strict=True):
            listed = [row for row in left if row >= 0]
            shared.append(len(set(listed) & set(right)) / max(1, len(listed)))
            firsts.append(left[0] == right[0])
        before, after = a.metrics, b.metrics
        # Ranks are known where the rankings made hold every target, which one may and the other not.
        metrics[a.part.name] = {name: after[name] - before[name] for name in before if name in after}
    angles = np.concatenate(cosines)
    return {
        "metrics": metrics,
        "top10_agreement": {"mean": float(np.mean(shared)), "worst": float(np.min(shared))},
        "same_top1": float(np.mean(firsts)),
        "embedding_cosine": {"mean": float(angles.mean()), "worst": float(angles.min())},
    }
