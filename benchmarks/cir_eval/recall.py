"""Recall@K: the share of queries with a correct target among the first K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError

__all__ = ["ranks_of_targets", "recall_at"]


def ranks_of_targets(
    scores: npt.NDArray[Any],
    targets: npt.NDArray[np.int64],
    excluded: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """The rank of each query's target, from 1.

    Equal scores are ordered by the smaller row number, and a NaN ranks behind every number, as every
    scorer of the SDK does.

    Args:
        scores: float (Q, N), higher is better.
        targets: (Q,) the row of each query's correct target.
        excluded: (Q,) a row that may not be returned, usually the reference's own; None excludes none.

    Raises:
        UsageError: shapes do not fit, a row is out of range, or a target is excluded from its own list.
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise UsageError(f"scores {scores.shape} and targets {targets.shape}; expected (Q, N) and (Q,)")
    for name, rows in (("target", targets), ("excluded", excluded)):
        if rows is None:
            continue
        if rows.shape != targets.shape or (rows.size and not 0 <= rows.min() <= rows.max() < scores.shape[1]):
            raise UsageError(f"an {name} row is not one of the {scores.shape[1]} rows of each query")
    if excluded is not None and (excluded == targets).any():
        raise UsageError("a query's target is its excluded row; it could never be found")
    values = np.where(np.isnan(scores), -np.inf, scores)
    queries = np.arange(len(targets))
    own = values[queries, targets][:, None]
    rows_before = np.arange(values.shape[1])[None, :] < targets[:, None]
    ahead = (values > own) | ((values == own) & rows_before)
    if excluded is not None:
        ahead[queries, excluded] = False
    ranks: npt.NDArray[np.int64] = 1 + ahead.sum(axis=1, dtype=np.int64)
    return ranks


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
