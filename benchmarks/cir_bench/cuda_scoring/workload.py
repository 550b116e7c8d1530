"""What is scored, and whether an answer is right: for galleries too large to be scored in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_bench.scoring.workload import artemis_terms
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import term_scores

__all__ = ["Case", "Workload", "stored_rows"]

_CHUNK = 1 << 15
_CHECKED_QUERIES = 4
_CHECKED_ROWS = 20_000


@dataclass(frozen=True)
class Case:
    """One size to measure: random unit rows, ARTEMIS-like terms."""

    rows: int
    dim: int = 512
    queries: int = 1
    k: int = 50
    samples: int = 30


def stored_rows(case: Case, dtype: str) -> Rows:
    """Random directions as "float32", "float16" or "int8" rows, the same for each; no float32 copy of all.

    One block is drawn. The others are that block with its columns moved along and some of their signs
    changed, which are random directions too, and come at the speed of memory instead of a generator's.
    """
    rng = np.random.default_rng(7)
    block = rng.standard_normal((min(_CHUNK, case.rows), case.dim), dtype=np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    out = np.empty((case.rows, case.dim), dtype)
    scales = np.empty(case.rows, np.float32) if dtype == "int8" else None
    for number, start in enumerate(range(0, case.rows, _CHUNK)):
        part = block[: case.rows - start]
        if number:
            signs = rng.choice(np.array([-1, 1], np.float32), case.dim)
            part = np.roll(part, number, axis=1) * signs
        if scales is not None:
            scale = np.abs(part).max(axis=1) / 127
            scales[start : start + _CHUNK] = scale
            part = np.rint(part / scale[:, None])
        out[start : start + _CHUNK] = part
    return Rows.of(out, scales)


@dataclass(frozen=True)
class Workload:
    """Rows of one type and the queries."""

    case: Case
    dtype: str
    rows: Rows

    @staticmethod
    def of(case: Case, dtype: str) -> Workload:
        """The rows of a case, stored as that type."""
        return Workload(case, dtype, stored_rows(case, dtype))

    @cached_property
    def terms(self) -> QueryTerms:
        """Q queries of two weighted terms."""
        return artemis_terms(self.case.queries, self.case.dim, 11)

    @cached_property
    def dots(self) -> QueryTerms:
        """The same queries as one plain product each, for what can do no more."""
        vectors = self.terms.numerators.sum(axis=1, keepdims=True)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        return QueryTerms(np.ascontiguousarray(vectors), None, ("dot",))

    def is_best(
        self,
        rows: npt.NDArray[np.int64],
        scores: npt.NDArray[Any] | None,
        terms: QueryTerms,
        tolerance: float,
    ) -> bool:
        """Whether an answer is that of the definition in float64, for some queries and a sample of the rows.

        Args:
            rows: (Q', k) row numbers, best first; the first Q' queries are checked.
            scores: (Q', k), or None where the entry gives none.
            terms: what was asked.
            tolerance: of a score, as a share of the largest.
        """
        sample = np.unique(np.linspace(0, self.rows.count - 1, _CHECKED_ROWS).astype(np.int64))
        for q in np.unique(np.linspace(0, len(rows) - 1, _CHECKED_QUERIES).astype(int)):
            chosen = np.asarray(rows[q], np.int64)
            if len(np.unique(chosen)) != len(chosen) or chosen.min() < 0 or chosen.max() >= self.rows.count:
                return False
            exact = self._definition(terms[int(q)], chosen)
            others = self._definition(terms[int(q)], np.setdiff1d(sample, chosen))
            slack = tolerance * float(np.abs(exact).max())
            if (np.diff(exact) > 2 * slack).any() or others.max(initial=-np.inf) > exact.min() + 2 * slack:
                return False
            if scores is None:
                continue
            if not np.abs(np.asarray(scores[q], np.float64) - exact).max() <= slack:  # also NaN
                return False
        return True

    def _definition(self, terms: QueryTerms, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Scores of some rows for one query."""
        scores: npt.NDArray[np.float64] = term_scores(terms, self.rows.take(rows).astype(np.float64))[0].sum(
            axis=0
        )
        return scores
