"""What is scored: rows, ARTEMIS-like terms, and the float64 answer that every entry is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import term_scores

__all__ = [
    "Workload",
    "aligned_copy",
    "artemis_terms",
    "latent_rows",
    "plain_terms",
    "quantise",
    "unit_items",
    "unit_rows",
]

_CHUNK = 1 << 15
_VERIFIED_QUERIES = 4


def aligned_copy(values: npt.NDArray[Any], dtype: Any = None) -> npt.NDArray[Any]:
    """A copy that starts on a cache line, as the memory-mapped segments of a gallery do."""
    kind = np.dtype(dtype or values.dtype)
    raw = np.empty(values.size * kind.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + values.size * kind.itemsize].view(kind).reshape(values.shape)
    for first in range(0, len(values), _CHUNK):
        out[first : first + _CHUNK] = values[first : first + _CHUNK]
    return out


def unit_rows(count: int, dim: int, seed: int) -> npt.NDArray[np.float32]:
    """Random directions: float32 (count, dim). No embedding of images is harder to tell apart."""
    rng = np.random.default_rng(seed)
    out = aligned_copy(np.empty((count, dim), np.float32))
    for start in range(0, count, _CHUNK):
        part = rng.standard_normal((min(_CHUNK, count - start), dim), dtype=np.float32)
        out[start : start + _CHUNK] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def unit_items(count: int, tokens: int, dim: int, seed: int) -> npt.NDArray[np.float32]:
    """Items of several random directions each: float32 (count, tokens, dim)."""
    return unit_rows(count * tokens, dim, seed).reshape(count, tokens, dim)


def plain_terms(queries: int, dim: int, seed: int) -> QueryTerms:
    """One random direction a query, for a dot product."""
    return QueryTerms(unit_rows(queries, dim, seed)[:, None].copy(), None, ("dot_product",))


def latent_rows(count: int, dim: int, seed: int, latent: int = 24) -> npt.NDArray[np.float32]:
    """Unit rows on a curved surface of few dimensions, as embeddings are: float32 (count, dim).

    Random directions have no neighbours, so no index can find them; these have.
    """
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((latent, dim), dtype=np.float32) / np.sqrt(np.float32(latent))
    second = rng.standard_normal((dim, dim), dtype=np.float32) / np.sqrt(np.float32(dim))
    out = aligned_copy(np.empty((count, dim), np.float32))
    for start in range(0, count, _CHUNK):
        z = rng.standard_normal((min(_CHUNK, count - start), latent), dtype=np.float32)
        part = np.tanh(2 * z @ first) @ second
        out[start : start + _CHUNK] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def artemis_terms(
    queries: int, dim: int, seed: int, peak: float = 0.5, near: npt.NDArray[np.float32] | None = None
) -> QueryTerms:
    """Terms as of a trained ARTEMIS, whose softmax attention is nearly flat.

    Args:
        queries: Q.
        dim: D.
        seed: of the draw.
        peak: scale of the attention's logits.
        near: (N, D) rows; reference and text embeddings are then one of them each, with some noise, as
            embeddings of a trained model lie where the gallery's do. None for random directions.
    """
    rng = np.random.default_rng(seed)
    logits = peak * rng.standard_normal((queries, 2, dim))
    a = np.exp(logits - logits.max(axis=-1, keepdims=True))
    a /= a.sum(axis=-1, keepdims=True)
    r = rng.standard_normal((queries, 2, dim))
    if near is not None:
        chosen = near[rng.integers(0, len(near), queries)].astype(np.float64)[:, None]
        r = chosen / np.linalg.norm(chosen, axis=-1, keepdims=True) + 0.3 * r / np.sqrt(dim)
    n = a * a * r / np.linalg.norm(a * r, axis=-1, keepdims=True)
    names = ("implicit_similarity", "explicit_matching")
    return QueryTerms(n.astype(np.float32), (a * a).astype(np.float32), names)


def quantise(values: npt.NDArray[np.float32]) -> Rows:
    """The values as int8 rows with a scale each."""
    out = aligned_copy(np.empty(values.shape, np.int8))
    scales = np.empty(values.shape[:-1], np.float32)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        scale = np.abs(part).max(axis=-1) / 127
        scales[start : start + _CHUNK] = scale
        out[start : start + _CHUNK] = np.rint(part / scale[..., None])
    return Rows.of(out, scales)


@dataclass(frozen=True)
class Workload:
    """One size.

    Attributes:
        values: float32 (N, D), unit rows; or (N, M, D), items of M unit vectors.
        terms: Q queries.
        k: results a query.
        threads: that every entry may use.
    """

    values: npt.NDArray[np.float32]
    terms: QueryTerms
    k: int
    threads: int
    _exact: dict[tuple[int, int], npt.NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @cached_property
    def dots(self) -> npt.NDArray[np.float32]:
        """float32 (Q, D): one vector a query, for what can do no more than one dot product."""
        return np.ascontiguousarray(self.terms.numerators.sum(axis=1))

    @cached_property
    def squares(self) -> npt.NDArray[np.float32]:
        """float32 (N, D): what a matrix product needs beside the rows."""
        out = aligned_copy(self.values)
        out *= out
        return out

    @property
    def flops(self) -> int:
        """Useful floating-point operations: the products with rows and squares, 2 each."""
        q, j, d = self.terms.numerators.shape
        products = 1 if self.terms.weights is None else 2
        return int(2 * products * q * j * d * (self.values.size // d))

    def is_best(
        self,
        rows: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32] | None,
        stored: Rows,
        terms: QueryTerms | None = None,
        tolerance: float = 2e-5,
    ) -> bool:
        """Whether rows (Q', k) and scores are the k best by the definition, up to the tolerance.

        The first queries are checked. A score may differ from the definition's by the tolerance times
        the range of scores, and no row left out may be better than a returned one by more.
        """
        checked = min(_VERIFIED_QUERIES, len(rows))
        exact = self._definition(terms or self.terms, stored)
        for q in range(checked):
            slack = tolerance * float(np.abs(exact[q]).max())
            chosen = rows[q]
            if len(set(chosen.tolist())) != len(chosen) or chosen.min() < 0:
                return False
            floor = np.partition(exact[q], -len(chosen))[-len(chosen)]
            if exact[q][chosen].min() < floor - slack:
                return False
            if scores is None:
                continue
            if not np.abs(scores[q] - exact[q][chosen]).max() <= slack:  # also NaN
                return False
        return True

    def error(self, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> float:
        """Largest difference of scores (Q', k) from the definition on `values`, over the largest score."""
        exact = self._definition(self.terms, self._unrounded)
        checked = range(min(_VERIFIED_QUERIES, len(rows)))
        return max(
            float(np.abs(scores[q] - exact[q][rows[q]]).max() / np.abs(exact[q]).max()) for q in checked
        )

    @cached_property
    def _unrounded(self) -> Rows:
        return Rows.of(self.values)

    def _definition(self, terms: QueryTerms, stored: Rows) -> npt.NDArray[np.float64]:
        """Scores (Q', N) of the first queries, computed once for all entries that read the same rows."""
        key = (id(stored.blocks[0]), id(terms))
        if key not in self._exact:
            parts = []
            step = max(1, _CHUNK // stored.tokens_per_item)
            for start in range(0, stored.count, step):
                number = np.arange(start, min(start + step, stored.count))
                values = stored.take(number).astype(np.float64)
                parts.append(term_scores(terms[:_VERIFIED_QUERIES], values).sum(axis=1))
            self._exact[key] = np.concatenate(parts, axis=1)
        return self._exact[key]
