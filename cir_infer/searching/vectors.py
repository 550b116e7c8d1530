"""Vectors that some model has made, as queries: what they have to be, and the terms that they become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery import Snapshot
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.arguments import checked_word
from cir_infer.scoring.contract import QueryTerms, TopK

__all__ = ["METRICS", "Metric", "checked_queries", "hits_of", "read_vectors", "vector_terms"]

Metric = Literal["cosine", "dot"]
METRICS: tuple[Metric, ...] = ("cosine", "dot")
_TERM = {"cosine": "cosine", "dot": "dot_product"}
_AT_ONCE = 256


def checked_queries(vectors: Any, dimension: int) -> npt.NDArray[Any]:
    """Query vectors (Q, D) as an array of numbers, of whatever type they have.

    Raises:
        UsageError: they are no numbers, have another shape or width, or one of them is not finite or zero;
            the message says which, counted from 0.
    """
    expected = f"numbers of shape (queries, {dimension})"
    try:
        if np.ma.is_masked(vectors):
            raise ValueError("some are masked")
        array = np.asarray(vectors)
    except Exception as error:  # what arrays and tensors of others raise
        raise UsageError(f"vectors cannot be read ({shown(error)}); expected {expected}") from error
    if array.dtype.kind not in "fiu":
        raise UsageError(f"vectors are {array.dtype}; expected {expected}")
    if array.shape == (dimension,):
        raise UsageError(f"vectors is one vector of shape {array.shape}; expected {expected}, vectors[None]")
    if array.ndim != 2:
        raise UsageError(f"vectors have shape {shown(array.shape, 60)}; expected {expected}")
    if array.shape[1] != dimension:
        raise UsageError(
            f"vectors have {array.shape[1]} values each, the rows of the gallery {dimension}; a query comes "
            "from the model that made them"
        )
    for start in range(0, len(array), _AT_ONCE):
        part = array[start : start + _AT_ONCE]
        for fault, wrong in (
            ("holds NaN or infinity", ~np.isfinite(part).all(axis=1)),
            ("is zero everywhere, so it has no direction", ~(part != 0).any(axis=1)),
        ):
            if wrong.any():
                raise UsageError(f"vector {start + int(np.argmax(wrong))} {fault}; expected finite numbers")
    return array


def vector_terms(vectors: npt.NDArray[Any], metric: Metric) -> Iterator[QueryTerms]:
    """Query terms of checked vectors, some queries at a time.

    "cosine" is a term with weights of one, which divides by the length of each row; the query is divided
    by its own in float64. "dot" is a term without weights.

    Raises:
        UsageError: a value of a dot product is beyond float32.
    """
    name = _TERM[checked_word("metric", metric, METRICS)]
    for start in range(0, len(vectors), _AT_ONCE):
        values = vectors[start : start + _AT_ONCE].astype(np.float64)
        if metric == "cosine":
            values /= np.abs(values).max(axis=1, keepdims=True)  # no square leaves float64's range
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            numerators = values.astype(np.float32)[:, None, :]
        beyond = ~np.isfinite(numerators).all(axis=(1, 2))
        if beyond.any():
            raise UsageError(
                f"vector {start + int(np.argmax(beyond))} holds a value beyond float32; scale the vectors, "
                "or ask for the cosine"
            )
        weights = np.ones_like(numerators) if metric == "cosine" else None
        yield QueryTerms(np.ascontiguousarray(numerators), weights, (name,))


def hits_of(snapshot: Snapshot, top: TopK, names: tuple[str, ...]) -> list[Hits]:
    """The answers to the queries of a `TopK`."""
    answers = []
    for scores, rows, terms in zip(top.scores.tolist(), top.rows, top.terms.tolist(), strict=True):
        items = snapshot.items(rows[rows >= 0])
        answers.append(
            Hits(
                Hit(
                    item.id,
                    place + 1,
                    scores[place],
                    dict(zip(names, terms[place], strict=True)),
                    item.metadata,
                    item.source,
                )
                for place, item in enumerate(items)
            )
        )
    return answers


def read_vectors(path: Path) -> npt.NDArray[Any]:
    """A `.npy` file, memory-mapped: one vector (D,) or several (Q, D), as (Q, D).

    Raises:
        GalleryError: it cannot be read as an array.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise GalleryError(f"{path}: cannot be read as a .npy array ({shown(error)})") from error
    if not isinstance(array, np.ndarray):
        raise GalleryError(f"{path}: holds several arrays; expected one, as numpy.save writes it")
    return array[None] if array.ndim == 1 else array
