"""The definition of a score: NumPy in float64, the ruler that every other scorer is held against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.scoring.validation import check_query

__all__ = ["SQUARED_NORM_FLOOR", "ReferenceScorer", "term_scores"]

SQUARED_NORM_FLOOR = 1e-200
"""Below any w.t^2 but zero that float32 rows and weights can give: a term below it is 0."""

_CHUNK_VALUES = 1 << 22


def term_scores(terms: QueryTerms, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Every term of every query over every row.

    Args:
        terms: Q queries, J terms, dimension D.
        rows: float64 (N, D).

    Returns:
        float64 (Q, J, N); NaN where a row holds NaN or infinity.
    """
    numerators = terms.numerators.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        values: npt.NDArray[np.float64] = numerators @ rows.T
        if terms.weights is not None:
            squared_norms = terms.weights.astype(np.float64) @ (rows * rows).T
            values /= np.sqrt(np.maximum(squared_norms, SQUARED_NORM_FLOOR))
            values[squared_norms < SQUARED_NORM_FLOOR] = 0
    values[:, :, ~np.isfinite(rows).all(axis=1)] = np.nan
    return values


class ReferenceScorer:
    """Exact top-k in float64, a chunk of rows at a time. The definition, not the fast way."""

    name = "reference"

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """See `Scorer.topk`."""
        n = self._rows.count
        check_query(terms, k, allow, n, self._rows.dimension)
        allowed = None if allow is None else np.unpackbits(allow, count=n, bitorder="little").astype(bool)
        q, j, _ = terms.numerators.shape
        best_scores = np.empty((q, 0))
        best_rows = np.empty((q, 0), np.int64)
        best_terms = np.empty((q, 0, j))
        step = max(1, _CHUNK_VALUES // max(self._rows.dimension, q * j, 1))
        for start in range(0, n, step):
            number = np.arange(start, min(start + step, n))
            by_term = term_scores(terms, self._rows.take(number).astype(np.float64))
            # Compared as float32, the type of the answer, so that ties are ties on every backend.
            with np.errstate(over="ignore", invalid="ignore"):
                by_term = by_term.astype(np.float32).astype(np.float64)
                scores = by_term.sum(axis=1).astype(np.float32).astype(np.float64)
            scores[~np.isfinite(scores)] = -np.inf
            if allowed is not None:
                scores[:, ~allowed[number]] = -np.inf
            best_scores = np.concatenate([best_scores, scores], axis=1)
            best_rows = np.concatenate([best_rows, np.broadcast_to(number, (q, len(number)))], axis=1)
            best_terms = np.concatenate([best_terms, by_term.transpose(0, 2, 1)], axis=1)
            order = np.lexsort((best_rows, -best_scores), axis=1)[:, :k]
            best_scores = np.take_along_axis(best_scores, order, axis=1)
            best_rows = np.take_along_axis(best_rows, order, axis=1)
            best_terms = np.take_along_axis(best_terms, order[:, :, None], axis=1)
        found = best_scores.shape[1]
        out = TopK(
            np.full((q, k), -np.inf, np.float32),
            np.full((q, k), -1, np.int64),
            np.full((q, k, j), np.nan, np.float32),
        )
        out.scores[:, :found] = best_scores
        out.rows[:, :found] = best_rows
        out.terms[:, :found] = best_terms
        empty = np.isneginf(out.scores)
        out.rows[empty] = -1
        out.terms[empty] = np.nan
        return out
