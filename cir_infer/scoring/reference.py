"""The definition of a score: NumPy in float64, the ruler that every other scorer is held against.

`exact_scores` is the definition to the last bit. `term_scores` is the same up to float64's rounding, at the
speed of a matrix product: for whoever needs a ruler and no bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.scoring.validation import check_query, within_memory

__all__ = [
    "SQUARED_NORM_FLOOR",
    "ReferenceScorer",
    "best_of",
    "exact_item_scores",
    "exact_scores",
    "exact_terms",
    "term_scores",
    "without_unranked",
]

SQUARED_NORM_FLOOR = 1e-200
"""Below any w.t^2 but zero that float32 rows and weights can give: a term below it is 0."""

_CHUNK_VALUES = 1 << 19
_LANES = 8
"""Accumulators of a sum: value d goes to number d % 8."""


def term_scores(terms: QueryTerms, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Every term of every query over every row.

    Args:
        terms: Q queries, J terms, dimension D.
        rows: float64 (N, D); or (N, M, D), items of M vectors, of whose values a term is the largest.

    Returns:
        float64 (Q, J, N); NaN where a row holds NaN or infinity.
    """
    if rows.ndim == 3:
        of_vectors = term_scores(terms, rows.reshape(-1, rows.shape[2]))
        best: npt.NDArray[np.float64] = of_vectors.reshape(*of_vectors.shape[:2], *rows.shape[:2]).max(axis=3)
        return best
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
    return _rounded(exact_terms(terms, rows))


def exact_item_scores(
    terms: QueryTerms, items: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """The scores (Q, N), terms (Q, J, N) and winning vectors (Q, J, N) of float32 items (N, M, D).

    A term of an item is the largest of its vectors' in float64; the winner is the first vector whose own
    term, as float32, is the item's.
    """
    n, m, d = items.shape
    q, j, _ = terms.numerators.shape
    exact = exact_terms(terms, items.reshape(n * m, d)).reshape(q, j, n, m)
    scores, by_term = _rounded(exact.max(axis=3))
    with np.errstate(invalid="ignore", over="ignore"):
        winners = (exact.astype(np.float32) == by_term[..., None]).argmax(axis=3)
    return scores, by_term, winners.astype(np.int32)


def _rounded(exact: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
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
        n, tokens = self._rows.count, self._rows.has_tokens
        q, j, d = terms.numerators.shape
        best = TopK.empty(q, 0, j, tokens)
        step = max(1, _CHUNK_VALUES // (max(d, _LANES * q * j, 1) * self._rows.tokens_per_item))
        for start in range(0, n, step):
            number = np.arange(start, min(start + step, n))
            winners = None
            if tokens:
                scores, by_term, winners = exact_item_scores(terms, self._rows.take(number))
            else:
                scores, by_term = exact_scores(terms, self._rows.take(number))
            if allow is not None:
                scores[:, (allow[number >> 3] >> (number & 7) & 1) == 0] = np.nan
            found = (
                scores,
                np.broadcast_to(number, scores.shape),
                by_term.transpose(0, 2, 1),
                None if winners is None else winners.transpose(0, 2, 1),
            )
            best = best_of([best, TopK(*found)], k)
        return without_unranked(best)


def best_of(parts: Sequence[TopK], k: int) -> TopK:
    """The k best of several answers to the same queries, over different rows; NaN comes last."""
    together = _each(parts, lambda arrays: np.concatenate(arrays, axis=1))
    order = np.lexsort((together.rows, -together.scores), axis=1)[:, :k]

    def chosen(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        places = order if arrays[0].ndim == 2 else order[:, :, None]
        return np.take_along_axis(arrays[0], places, axis=1)

    return _each([together], chosen)


def without_unranked(best: TopK) -> TopK:
    """An answer with nothing in the places of rows whose score is NaN; changed in place."""
    unranked = np.isnan(best.scores)
    best.scores[unranked] = -np.inf
    best.rows[unranked] = -1
    best.terms[unranked] = np.nan
    if best.tokens is not None:
        best.tokens[unranked] = -1
    return best


def _each(parts: Sequence[TopK], work: Callable[[Sequence[npt.NDArray[Any]]], npt.NDArray[Any]]) -> TopK:
    """An answer whose arrays are made of those of several."""
    made: list[Any] = [None if each[0] is None else work(each) for each in zip(*parts, strict=True)]
    return TopK(*made)
