"""The definition of a score: NumPy in float64, the ruler that every other scorer is held against.

`exact_scores` is the definition to the last bit. `term_scores` is the same up to float64's rounding, at the
speed of a matrix product: for whoever needs a ruler and no bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.scoring.validation import check_query, within_memory

__all__ = ["SQUARED_NORM_FLOOR", "ReferenceScorer", "exact_scores", "exact_terms", "term_scores"]

SQUARED_NORM_FLOOR = 1e-200
"""Below any w.t^2 but zero that float32 rows and weights can give: a term below it is 0."""

_CHUNK_VALUES = 1 << 19
_LANES = 8
"""Accumulators of a sum: value d goes to number d % 8."""


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


def exact_terms(terms: QueryTerms, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Every term of every query over every row, with the sums in the order that all scorers take.

    Products of float32 values are exact in float64, so what remains is the order of additions: eight
    accumulators, each over every eighth value, added as ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). A
    weight meets the rounded product t * t.

    Args:
        terms: Q queries, J terms, dimension D.
        rows: float32 (N, D).

    Returns:
        float64 (Q, J, N); NaN where a row holds NaN or infinity.
    """
    q, j, d = terms.numerators.shape
    values = _lanes(rows)[:, :, None, :]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        out = _sums(_lanes(terms.numerators.reshape(q * j, d)), values)
        if terms.weights is not None:
            squares = _sums(_lanes(terms.weights.reshape(q * j, d)), values * values)
            out = np.where(squares > 0, out / np.sqrt(squares), 0.0)
    out[:, ~np.isfinite(rows).all(axis=1)] = np.nan
    return out.reshape(q, j, len(rows))


def exact_scores(
    terms: QueryTerms, rows: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The scores (Q, N) and terms (Q, J, N) of float32 rows (N, D): NaN scores for rows that do not rank."""
    exact = exact_terms(terms, rows)
    with np.errstate(invalid="ignore", over="ignore"):
        by_term = exact.astype(np.float32)
        total = exact[:, 0]
        for j in range(1, exact.shape[1]):
            total = total + exact[:, j]
        scores = total.astype(np.float32)
    scores[~(np.isfinite(scores) & np.isfinite(by_term).all(axis=1))] = np.nan
    return scores, by_term


def _lanes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(n, D) as float64 (D / 8, 8, n), filled up with zeros, which change no sum."""
    n, d = values.shape
    steps = -(-d // _LANES)
    out = np.zeros((steps * _LANES, n))
    out[:d] = values.T
    return out.reshape(steps, _LANES, n)


def _sums(terms: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Terms (S, 8, P) times values (S, 8, 1, N), summed: (P, N)."""
    sums = np.zeros((_LANES, terms.shape[2], values.shape[3]))
    for term, value in zip(terms[..., None], values, strict=True):
        sums += term * value
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    total: npt.NDArray[np.float64] = sums[0]
    return total


class ReferenceScorer:
    """Exact top-k by `exact_scores`, a chunk of rows at a time. The definition, not the fast way."""

    name = "reference"

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """See `Scorer.topk`."""
        check_query(terms, k, allow, self._rows.count, self._rows.dimension)
        with within_memory(terms, k):
            return self._best(terms, min(int(k), self._rows.count), allow).widened(int(k))

    def _best(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None) -> TopK:
        n = self._rows.count
        q, j, d = terms.numerators.shape
        best = TopK.empty(q, 0, j)
        step = max(1, _CHUNK_VALUES // max(d, _LANES * q * j, 1))
        for start in range(0, n, step):
            number = np.arange(start, min(start + step, n))
            scores, by_term = exact_scores(terms, self._rows.take(number))
            if allow is not None:
                scores[:, (allow[number >> 3] >> (number & 7) & 1) == 0] = np.nan
            best = TopK(
                np.concatenate([best.scores, scores], axis=1),
                np.concatenate([best.rows, np.broadcast_to(number, scores.shape)], axis=1),
                np.concatenate([best.terms, by_term.transpose(0, 2, 1)], axis=1),
            )
            order = np.lexsort((best.rows, -best.scores), axis=1)[:, :k]  # NaN comes last
            best = TopK(
                np.take_along_axis(best.scores, order, axis=1),
                np.take_along_axis(best.rows, order, axis=1),
                np.take_along_axis(best.terms, order[:, :, None], axis=1),
            )
        unranked = np.isnan(best.scores)
        best.scores[unranked] = -np.inf
        best.rows[unranked] = -1
        best.terms[unranked] = np.nan
        return best
