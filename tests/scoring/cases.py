"""Rows and terms to score, and what the float64 definition says of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.scoring.reference import exact_scores

Array = npt.NDArray[Any]
ROW_TYPES = ("float32", "float16", "int8")


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_terms(
    rng: np.random.Generator, q: int, j: int, d: int, weighted: bool, peak: float = 1.0
) -> QueryTerms:
    """ARTEMIS-like terms: softmax attention a, n = a * a * r / |a * r| and w = a * a, for each j."""
    names = tuple(f"term_{i}" for i in range(j))
    r = rng.standard_normal((q, j, d))
    if not weighted:
        r /= np.linalg.norm(r, axis=-1, keepdims=True)
        return QueryTerms(r.astype(np.float32), None, names)
    a = softmax(peak * rng.standard_normal((q, j, d)))
    n = a * a * r / np.linalg.norm(a * r, axis=-1, keepdims=True)
    return QueryTerms(n.astype(np.float32), (a * a).astype(np.float32), names)


def quantise(values: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rows as int8 with one scale a row (the row's largest magnitude becomes 127)."""
    top = np.abs(values).max(axis=1, initial=0.0)
    scales = np.where(top > 0, top / 127.0, 1.0).astype(np.float32)
    return np.clip(np.rint(values / scales[:, None]), -127, 127).astype(np.int8), scales


def rows_of(values: Array, row_type: str, cuts: Sequence[int] = ()) -> Rows:
    """The values as rows of a type, cut into blocks at the given row numbers (repeats give empty blocks)."""
    edges = [0, *cuts, len(values)]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    if row_type != "int8":
        typed = values.astype(row_type)
        return Rows(tuple(np.ascontiguousarray(typed[s]) for s in spans))
    whole, scales = quantise(values)
    return Rows(
        tuple(np.ascontiguousarray(whole[s]) for s in spans),
        tuple(np.ascontiguousarray(scales[s]) for s in spans),
    )


def pack(allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.packbits(allowed, bitorder="little")


_definitions: dict[bytes, tuple[Array, Array, Array]] = {}
"""Every backend is asked the same cases, and the definition takes longer than their answers."""


def define(terms: QueryTerms, rows: Rows) -> tuple[Array, Array, Array]:
    """Scores (Q, N), NaN for rows that do not rank, terms (Q, N, J), and the rows' order (Q, N)."""
    digest = hashlib.sha256(repr((terms.numerators.shape, rows.dtype)).encode())
    for array in (terms.numerators, terms.weights, *rows.blocks, *(rows.scales or ())):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
    key = digest.digest()
    if key not in _definitions:
        values = rows.take(np.arange(rows.count))
        scores, by_term = exact_scores(terms, values)
        # NaN goes last, and of equal scores the smaller row number first.
        _definitions[key] = scores, by_term.transpose(0, 2, 1), np.argsort(-scores, axis=1, kind="stable")
    return _definitions[key]


def check_topk(
    got: TopK, terms: QueryTerms, rows: Rows, k: int, allow: npt.NDArray[np.uint8] | None = None
) -> None:
    """Assert that an answer is the definition's; beyond the rows that qualify -1, -inf and NaN."""
    n, (q, j, _) = rows.count, terms.numerators.shape
    assert got.scores.shape == (q, k) and got.scores.dtype == np.float32
    assert got.rows.shape == (q, k) and got.rows.dtype == np.int64
    assert got.terms.shape == (q, k, j) and got.terms.dtype == np.float32

    scores, by_term, order = define(terms, rows)
    ranks = ~np.isnan(scores)
    if allow is not None:
        ranks &= np.unpackbits(allow, count=n, bitorder="little").astype(bool)
    best, best_scores, best_terms = np.full((q, k), -1), np.full((q, k), -np.inf), np.full((q, k, j), np.nan)
    for i in range(q):
        found = order[i][ranks[i, order[i]]][:k]
        best[i, : len(found)] = found
        best_scores[i, : len(found)] = scores[i, found]
        best_terms[i, : len(found)] = by_term[i, found]
    # All queries at once: one comparison takes NumPy longer than scoring a small case.
    np.testing.assert_array_equal(got.rows, best, "not the definition's rows")
    np.testing.assert_array_equal(got.scores, best_scores, "not the definition's scores")
    np.testing.assert_array_equal(got.terms, best_terms, "not the definition's terms")


def near(rng: np.random.Generator, row: Array, count: int, row_type: str, nudges: int = 3) -> Array:
    """Rows that differ from one by a unit in the last place of a few values, as float64."""
    typed = np.repeat(np.asarray(row)[None], count, axis=0)
    if row_type == "int8":
        whole, scales = quantise(typed[:1])
        typed = np.repeat(whole, count, axis=0).astype(np.float64)
        steps = np.ones_like(typed)
    else:
        typed = typed.astype(row_type)
        steps = np.spacing(np.abs(typed)).astype(np.float64)
        typed = typed.astype(np.float64)
        scales = np.ones(1, np.float32)
    for _ in range(nudges):
        at = rng.integers(0, typed.shape[1], count)
        typed[np.arange(count), at] += rng.choice([-1, 0, 1], count) * steps[np.arange(count), at]
    return typed * float(scales[0])
