"""How close a lowered bundle's embeddings, scores and lists are to those of the float32 bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cir_export.quiet import UNKNOWN_WORDS, quieter
from cir_export.samples import Samples
from cir_infer.engine import Engine
from cir_infer.errors import ScoringError
from cir_infer.runtime.graph import Array
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import ReferenceScorer, term_scores

__all__ = ["Fidelity", "cosines", "measure_fidelity"]

_BATCH = 16
_K = 10


@dataclass(frozen=True)
class Fidelity:
    """Two bundles on the same images and texts.

    Attributes:
        images: their number; `source` says what they are.
        queries: image i with text i, each list repeated as needed.
        source: where the images come from.
        cosine_mean: between the embeddings of an image (as a row and, where it differs, as a reference).
        cosine_worst: the smallest of them.
        text_cosine_worst: the smallest between the embeddings of a text; None where no text is read.
        score_error_mean: absolute, over all queries and images.
        score_error_worst: the largest.
        top10_agreement: share of the first ten that both lists have, mean over queries.
        finite: whether every embedding is finite; where not, all the other figures are None.
    """

    images: int
    queries: int
    source: str
    cosine_mean: float | None = None
    cosine_worst: float | None = None
    text_cosine_worst: float | None = None
    score_error_mean: float | None = None
    score_error_worst: float | None = None
    top10_agreement: float | None = None
    finite: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


@quieter(UNKNOWN_WORDS)
def measure_fidelity(exact: Engine, lowered: Engine, samples: Samples) -> Fidelity:
    """Runs the same images and texts through both engines."""
    images, texts = samples.images, samples.texts
    queries = max(len(images), len(texts))
    rows = _pair(exact, lowered, lambda engine: engine.encode_images(images, _BATCH))
    references = rows
    if not exact.row_is_reference:
        references = _pair(exact, lowered, lambda engine: engine.encode_references(images, _BATCH))
    read = _pair(exact, lowered, lambda engine: engine.encode_texts(texts, 1)) if exact.needs_text else None
    broken = Fidelity(len(images), queries, samples.source, finite=False)
    if not all(np.isfinite(part).all() for part in (*rows, *references, *(read or ()))):
        return broken
    try:
        terms = [
            engine.compose(
                _repeated(reference, queries) if engine.needs_reference else None,
                None if text is None else _repeated(text, queries),
            )
            for engine, reference, text in zip(
                (exact, lowered), references, read or (None, None), strict=True
            )
        ]
    except ScoringError:  # terms of finite embeddings that are not finite
        return broken
    angles = np.concatenate([cosines(*rows), cosines(*references)])
    errors = np.abs(np.subtract(*(_scores(*pair) for pair in zip(terms, rows, strict=True))))
    return Fidelity(
        len(images),
        queries,
        samples.source,
        cosine_mean=float(angles.mean()),
        cosine_worst=float(angles.min()),
        text_cosine_worst=None if read is None else float(cosines(*read).min()),
        score_error_mean=float(errors.mean()),
        score_error_worst=float(errors.max()),
        top10_agreement=_agreement(terms, rows),
    )


def cosines(a: Array, b: Array) -> Array:
    """Of embeddings (n, ...), pair by pair: float64 (n,)."""
    left, right = (part.reshape(len(part), -1).astype(np.float64) for part in (a, b))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    # Two zero vectors are the same vector.
    return np.where(norms > 0, (left * right).sum(1) / np.where(norms > 0, norms, 1.0), 1.0)


def _pair(exact: Engine, lowered: Engine, encode: Callable[[Engine], Array]) -> tuple[Array, Array]:
    return encode(exact), encode(lowered)


def _repeated(values: Array, count: int) -> Array:
    return values[np.arange(count) % len(values)]


def _scores(terms: QueryTerms, rows: Array) -> Array:
    scores: Array = term_scores(terms, rows.astype(np.float64)).sum(1)
    return scores


def _agreement(terms: Sequence[QueryTerms], rows: Sequence[Array]) -> float:
    k = min(_K, len(rows[0]))
    lists = [ReferenceScorer(Rows.of(part)).topk(one, k).rows for one, part in zip(terms, rows, strict=True)]
    shared = [len(set(a) & set(b)) / k for a, b in zip(*(found.tolist() for found in lists), strict=True)]
    return float(np.mean(shared))
