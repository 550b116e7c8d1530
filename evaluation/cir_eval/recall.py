"""Recall@K: the share of queries with a correct target among the first K."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError

__all__ = ["recall_at"]


def recall_at(ranks: npt.NDArray[np.int64], ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Recall@K for each K, as a share in [0, 1].

    Args:
        ranks: (Q,) the best rank of a correct target of each query, from 1.
        ks: the list lengths.

    Raises:
        UsageError: there are no queries, or a K is below 1.
    """
    if ranks.ndim != 1 or not ranks.size:
        raise UsageError(f"ranks {ranks.shape}; expected one rank for each of at least one query")
    if any(k < 1 for k in ks):
        raise UsageError(f"recall at {list(ks)}; expected list lengths of at least 1")
    return {k: float((ranks <= k).mean()) for k in ks}
