"""Vectors that some model has made, as queries: what they have to be, and the terms that they become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.hits import Hits
from cir_infer.inputs.arguments import checked_word
from cir_infer.inputs.arrays import mapped_array, unmasked
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import Found
from cir_infer.searching.made_hits import made_hits

__all__ = ["METRICS", "Metric", "ScaledTerms", "checked_queries", "hits_of", "read_vectors", "vector_terms"]

Metric = Literal["cosine", "dot"]
METRICS: tuple[Metric, ...] = ("cosine", "dot")
_TERM = {"cosine": "cosine", "dot": "dot_product"}
_AT_ONCE = 256
_MOST_OF_QUERY = 1024
_FLOAT32 = np.finfo(np.float32)


def checked_queries(vectors: Any, dimension: int) -> npt.NDArray[Any]:
    """Query vectors (Q, D) or (Q, T, D) as an array (Q, T, D) of numbers, of whatever type they have.

    Raises:
        UsageError: they are no numbers, have another shape or width, or one of them is not finite or zero;
            the message says which, counted from 0.
    """
    expected = f"numbers of shape (queries, {dimension})"
    try:
        array = unmasked(vectors)
    except Exception as error:  # what arrays and tensors of others raise
        raise UsageError(f"vectors cannot be read ({shown(error)}); expected {expected}") from error
    if array.dtype.kind not in "fiu":
        raise UsageError(f"vectors are {array.dtype}; expected {expected}")
    if array.shape == (dimension,):
        raise UsageError(f"vectors is one vector of shape {array.shape}; expected {expected}, vectors[None]")
    if array.ndim not in (2, 3):
        raise UsageError(f"vectors have shape {shown(array.shape, 60)}; expected {expected}")
    if array.shape[-1] != dimension:
        raise UsageError(
            f"vectors have {array.shape[-1]} values each, the rows of the gallery {dimension}; a query comes "
            "from the model that made them"
        )
    array = array.reshape(len(array), -1, dimension) if len(array) else np.empty((0, 1, dimension))
    if not 1 <= array.shape[1] <= _MOST_OF_QUERY:
        raise UsageError(
            f"a query has {array.shape[1]} vectors; expected 1 to {_MOST_OF_QUERY}, e.g. shape (queries, "
            f"vectors, {dimension})"
        )
    for start in range(0, len(array), _AT_ONCE):
        part = array[start : start + _AT_ONCE]
        for fault, wrong in (
            ("holds NaN or infinity", ~np.isfinite(part).all(axis=(1, 2))),
            ("is zero everywhere, so it has no direction", ~(part != 0).any(axis=2).all(axis=1)),
        ):
            if wrong.any():
                raise UsageError(f"vector {start + int(np.argmax(wrong))} {fault}; expected finite numbers")
    return array


class ScaledTerms(NamedTuple):
    """Some vectors as queries.

    Attributes:
        terms: the queries.
        scales: float64 (Q,), powers of two: what scores and terms of the answers have to be multiplied by.
    """

    terms: QueryTerms
    scales: npt.NDArray[np.float64]


def vector_terms(vectors: npt.NDArray[Any], metric: Metric, most: int = _AT_ONCE) -> Iterator[ScaledTerms]:
    """Query terms of checked vectors (Q, T, D), some queries at a time; each of the T vectors is a term.

    "cosine" is a term with weights of one, which divides by the length of each row; the query is divided
    by its own in float64. "dot" is a term without weights, over a query that is divided by a power of two
    above the sum of its sizes, and not far above: no product with a row is beyond float32 then, which would
    never be ranked, and none is nothing in it because the query is small.

    Args:
        vectors: see above.
        metric: see above.
        most: queries at a time.

    Raises:
        UsageError: a value of a dot product is beyond float32, or a vector of a query of several is nothing
            in it beside the others.
    """
    name = _TERM[checked_word("metric", metric, METRICS)]
    count = vectors.shape[1]
    names = (name,) if count == 1 else tuple(f"{name}_{number}" for number in range(count))
    step = max(1, min(_AT_ONCE // count, most))
    for start in range(0, len(vectors), step):
        values = vectors[start : start + step]
        values = values.astype(np.longdouble if values.dtype == np.longdouble else np.float64)
        scales = np.ones(len(values))
        if metric == "cosine":
            values /= np.abs(values).max(axis=2, keepdims=True)  # no square leaves float64's range
            values /= np.linalg.norm(values, axis=2, keepdims=True)
        else:
            held = np.abs(values).max(axis=(1, 2)) <= _FLOAT32.max
            _check_each(held, start, "holds a value beyond float32")
            # Of two powers the larger one: products are rounded, and so is the query.
            powers = np.frexp(np.abs(values).sum(axis=(1, 2)))[1] + 1
            scales, values = np.ldexp(1.0, powers), np.ldexp(values, -powers[:, None, None])
            held = np.abs(values).max(axis=2).min(axis=1) >= _FLOAT32.smallest_normal
            _check_each(held, start, "has values too small for float32 beside others of its query")
        numerators = np.ascontiguousarray(values, np.float32)
        terms = QueryTerms(numerators, np.ones_like(numerators) if metric == "cosine" else None, names)
        yield ScaledTerms(terms, scales)


def _check_each(right: npt.NDArray[np.bool_], start: int, fault: str) -> None:
    """Refuse the first of some queries that is not right; there are `start` before them."""
    if not right.all():
        raise UsageError(
            f"vector {start + int(np.argmin(right))} {fault}; scale the vectors, or ask for the cosine"
        )


def hits_of(found: Found, asked: ScaledTerms) -> list[Hits]:
    """The answers to queries of vectors."""
    answers = []
    for query, (items, scale) in enumerate(zip(found.items, asked.scales.tolist(), strict=True)):
        hits = made_hits(items, found.top, query, range(len(items)), asked.terms.names, scale)
        answers.append(Hits(hits, coverage=found.coverage, generations=found.generations))
    return answers


def read_vectors(path: Path) -> npt.NDArray[Any]:
    """A `.npy` file, memory-mapped: one vector (D,) or several (Q, D), as (Q, D).

    Raises:
        GalleryError: it cannot be read as an array, or holds no vector.
    """
    array = mapped_array(path)
    if not array.size:
        raise GalleryError(
            f"{shown(path)} holds no vector: its shape is {array.shape}; expected (D,) or (queries, D)"
        )
    return array[None] if array.ndim == 1 else array
