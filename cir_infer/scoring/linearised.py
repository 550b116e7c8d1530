"""The linearised first stage: candidates from any vector index, re-scored exactly. Never a default.

Where the denominators vary little over a gallery, as with the nearly flat attention of a trained
ARTEMIS, the sum of ratios is close to one inner product,

    sum_j (n_j . t) / sqrt(w_j . t^2)   ~   v . t      with  v = sum_j n_j / sqrt(w_j . mean(t^2)),

so an index for inner products can propose rows. Scores of the answer are exact; whether the best rows
are in it depends on the attention (with a peaked one they often are not) and on the index, so measure
`recall` on your own queries. No certificate is offered: the bounds that cost less than an exact scan
are too wide to prove anything (kernels/score/README.md).

    import usearch.index
    index = usearch.index.Index(ndim=512, metric="ip", dtype="f16"); index.add(np.arange(len(rows)), rows)
    scorer = LinearisedScorer(CpuScorer(Rows.of(rows)), Rows.of(rows), usearch_candidates(index))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ScoringError, UsageError
from cir_infer.inputs.arguments import checked_number
from cir_infer.processes.staying import Staying
from cir_infer.scoring.contract import SCORER_STAYS, QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.validation import check_query

__all__ = [
    "Candidates",
    "LinearisedScorer",
    "faiss_candidates",
    "lancedb_candidates",
    "linear_queries",
    "mean_squares",
    "recall",
    "usearch_candidates",
]

Candidates = Callable[[npt.NDArray[np.float32], int], npt.NDArray[np.int64]]
"""An index as a function: float32 (Q, D) and a count -> row numbers (Q, count) of the largest inner products,
-1 where the index has no more."""

_SAMPLE = 100_000
_CHUNK = 8192


def mean_squares(rows: Rows) -> npt.NDArray[np.float64]:
    """mean(t^2) over the rows, or over 100,000 of them evenly spread: float64 (D,)."""
    total = np.zeros(rows.dimension)
    number = np.linspace(0, max(rows.count - 1, 0), min(rows.count, _SAMPLE)).astype(np.int64)
    for start in range(0, len(number), _CHUNK):
        values = rows.take(number[start : start + _CHUNK]).astype(np.float64)
        total += np.square(np.where(np.isfinite(values), values, 0)).sum(axis=0)
    return total / max(len(number), 1)


def linear_queries(terms: QueryTerms, squares: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The one vector v of each query whose inner product with a row is nearly its score.

    Args:
        terms: Q queries.
        squares: (D,), from `mean_squares`.

    Returns:
        float32 (Q, D), of unit length (an inner product ranks the same at any length).
    """
    v = terms.numerators.astype(np.float64)
    if terms.weights is not None:
        norms = np.sqrt(terms.weights.astype(np.float64) @ squares)[..., None]
        v = np.divide(v, norms, out=np.zeros_like(v), where=norms > 0)
    v = v.sum(axis=1)
    lengths = np.linalg.norm(v, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (v / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


class LinearisedScorer(Staying):
    """Top-k among the candidates of an index, with exact scores.

    Args:
        scorer: scores the candidates exactly.
        rows: what the scorer scores and the index holds, under the same row numbers.
        candidates: the index.
        factor: candidates a result: k results are chosen from factor * k candidates.

    Raises:
        UsageError: factor < 1.
    """

    stays = SCORER_STAYS

    def __init__(self, scorer: Scorer, rows: Rows, candidates: Candidates, *, factor: int = 4) -> None:
        factor = checked_number("factor", factor)
        if rows.has_tokens:
            raise UsageError("rows of several vectors an item have no linearised form; use make_scorer")
        self._scorer = scorer
        self._rows = rows
        self._candidates = candidates
        self._factor = factor
        self._squares = mean_squares(rows)

    @property
    def name(self) -> str:
        """E.g. "linearised, then cpu (avx512vnni)"."""
        return f"linearised, then {self._scorer.name}"

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """The best k of the candidates that are allowed; scores and terms are exact. See `Scorer.topk`.

        Raises:
            ScoringError: as `Scorer.topk`, or the index returned row numbers that there are not.
        """
        count = self._rows.count
        check_query(terms, k, allow, count, self._rows.dimension)
        found = self._candidates(linear_queries(terms, self._squares), min(self._factor * k, max(count, 1)))
        if found.size and int(found.max()) >= count:
            raise ScoringError(
                f"the index knows row {int(found.max()):,} of a gallery of {count:,}; "
                "build it from these rows"
            )
        answers = []
        for q in range(terms.queries):
            mask = np.zeros((count + 7) // 8, np.uint8)
            mine = found[q][found[q] >= 0]
            np.bitwise_or.at(mask, mine >> 3, np.left_shift(1, mine & 7).astype(np.uint8))
            answers.append(self._scorer.topk(terms[q], k, mask if allow is None else mask & allow))
        if not answers:
            return self._scorer.topk(terms, k, allow)
        return TopK.joined(answers)


def recall(approximate: Scorer, exact: Scorer, terms: QueryTerms, k: int) -> npt.NDArray[np.float64]:
    """Per query, the share of the exact top-k that the other scorer returns: float64 (Q,)."""
    got, expected = approximate.topk(terms, k).rows, exact.topk(terms, k).rows
    shares = []
    for mine, best in zip(got, expected, strict=True):
        best = best[best >= 0]
        shares.append(float(np.isin(best, mine).mean()) if best.size else 1.0)
    return np.array(shares)


def usearch_candidates(index: Any) -> Candidates:
    """A `usearch.index.Index` with metric "ip" (or "cos", for unit rows) whose keys are row numbers."""

    def search(queries: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
        found = index.search(queries, count)
        # One query comes without its axis, and where less is found the rest is padding.
        keys = np.asarray(found.keys).astype(np.int64).reshape(len(queries), -1)
        counts = np.asarray(getattr(found, "counts", [keys.shape[1]])).reshape(-1, 1)
        keys[np.arange(keys.shape[1]) >= counts] = -1
        return keys

    return search


def faiss_candidates(index: Any) -> Candidates:
    """A FAISS index with METRIC_INNER_PRODUCT to which the rows were added in order."""

    def search(queries: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
        return np.asarray(index.search(queries, count)[1], np.int64)

    return search


def lancedb_candidates(
    table: Any, column: str = "vector", key: str = "row", nprobes: int = 64, refine: int = 4
) -> Candidates:
    """A table of LanceDB with an index of metric "dot" over the rows, and their row numbers as a column.

    Args:
        table: as `lancedb.connect(...).open_table(...)` gives it.
        column: of the rows.
        key: of the row numbers.
        nprobes: partitions of the index that are searched.
        refine: so many times as many candidates are read in full and ordered anew.
    """

    def search(queries: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
        found = np.full((len(queries), count), -1, np.int64)
        for number, query in enumerate(queries):
            asked = table.search(query, vector_column_name=column).distance_type("dot").limit(count)
            answer = asked.nprobes(nprobes).refine_factor(refine).select([key]).to_arrow()[key].to_numpy()
            found[number, : len(answer)] = answer
        return found

    return search
