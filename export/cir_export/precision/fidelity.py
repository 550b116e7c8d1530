"""How close a lowered bundle's embeddings, scores and lists are to those of the float32 bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cir_export.samples import Samples
from cir_infer.engine import Engine
from cir_infer.errors import ScoringError
from cir_infer.inputs.unknown_words import UNSAID
from cir_infer.runtime.graph import Array
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import ReferenceScorer, term_scores

__all__ = ["Fidelity", "Seen", "cosines", "measure_fidelity", "see"]

_BATCH = 4
"""Images at a time: what a large encoder makes of more takes more memory than its weights."""
_K = 10


@dataclass(frozen=True)
class Fidelity:
    """Two bundles on the same images and texts.

    Attributes:
        images: their number; `source` says what they are.
        queries: image i with text i, each list repeated as needed.
        source: where the images come from.
        cosine_mean: between the embeddings of an image (as a row and, where it differs, as a reference), in
            which a change of length counts too, see `cosines`.
        cosine_worst: the smallest of them.
        text_cosine_worst: the smallest between the embeddings of a text; None where no text is read.
        score_error_mean: absolute, over all queries and images.
        score_error_worst: the largest.
        top10_agreement: share of the first ten that both lists have, mean over queries; of fewer than 20
            images of the first half.
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


@dataclass(frozen=True)
class Seen:
    """What one bundle makes of the samples.

    Attributes:
        rows: of the images.
        references: of them, the same where a row is the reference.
        texts: their embeddings, one by one; None where no text is read.
        terms: of the queries; None where a value of the above, or a term, is not finite.
    """

    rows: Array
    references: Array
    texts: Array | None
    terms: QueryTerms | None


def see(engine: Engine, samples: Samples, progress: bool = False) -> Seen:
    """Runs the samples through an engine, and says how far it is where that is asked for."""
    images, texts = samples.images, samples.texts
    rows = engine.encode_images(images, _BATCH, progress)
    references = rows if engine.row_is_reference else engine.encode_references(images, _BATCH, progress)
    read = engine.encode_texts(texts, 1, together=UNSAID, progress=progress) if engine.needs_text else None
    if not all(np.isfinite(part).all() for part in (rows, references, read) if part is not None):
        return Seen(rows, references, read, None)
    queries = max(len(images), len(texts))
    try:
        terms = engine.compose(
            _repeated(references, queries) if engine.needs_reference else None,
            None if read is None else _repeated(read, queries),
        )
    except ScoringError:  # terms of finite embeddings that are not finite
        return Seen(rows, references, read, None)
    return Seen(rows, references, read, terms)


def measure_fidelity(before: Seen, after: Seen, samples: Samples) -> Fidelity:
    """Compares what two bundles make of the same images and texts."""
    images = len(samples.images)
    queries = max(images, len(samples.texts))
    if before.terms is None or after.terms is None:
        return Fidelity(images, queries, samples.source, finite=False)
    terms, rows = (before.terms, after.terms), (before.rows, after.rows)
    angles = np.concatenate([cosines(*rows), cosines(before.references, after.references)])
    errors = np.abs(np.subtract(*(_scores(*pair) for pair in zip(terms, rows, strict=True))))
    texts = None if before.texts is None or after.texts is None else cosines(before.texts, after.texts)
    return Fidelity(
        images,
        queries,
        samples.source,
        cosine_mean=float(angles.mean()),
        cosine_worst=float(angles.min()),
        text_cosine_worst=None if texts is None else float(texts.min()),
        score_error_mean=float(errors.mean()),
        score_error_worst=float(errors.max()),
        top10_agreement=_agreement(terms, rows),
    )


def cosines(a: Array, b: Array) -> Array:
    """Of embeddings (n, ...), pair by pair, float64 (n,): what they are and what they have become.

    A change of length counts too, as scores without weights depend on it: the cosine is at most that of two
    vectors of one length that are as far apart. A zero vector is like another one alone.
    """
    left, right = (part.reshape(len(part), -1).astype(np.float64) for part in (a, b))
    lengths = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    norms = lengths[0] * lengths[1]
    same = np.where(lengths[0] == lengths[1], 1.0, 0.0)
    angles = np.where(norms > 0, (left * right).sum(1) / np.where(norms > 0, norms, 1.0), same)
    apart = np.linalg.norm(left - right, axis=1) / np.where(lengths[0] > 0, lengths[0], np.inf)
    counted: Array = np.minimum(angles, 1 - apart**2 / 2)
    return counted


def _repeated(values: Array, count: int) -> Array:
    return values[np.arange(count) % len(values)]


def _scores(terms: QueryTerms, rows: Array) -> Array:
    scores: Array = term_scores(terms, rows.astype(np.float64)).sum(1)
    return scores


def _agreement(terms: Sequence[QueryTerms], rows: Sequence[Array]) -> float:
    # Of few images the first half: lists of all of them agree whatever their order.
    k = min(_K, max(1, len(rows[0]) // 2))
    lists = [ReferenceScorer(Rows.of(part)).topk(one, k).rows for one, part in zip(terms, rows, strict=True)]
    shared = [len(set(a) & set(b)) / k for a, b in zip(*(found.tolist() for found in lists), strict=True)]
    return float(np.mean(shared))
