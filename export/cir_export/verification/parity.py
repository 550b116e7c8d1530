"""PyTorch against the bundle, opened by the runtime itself: embeddings, terms, scores and top-10 lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cir_export.model_file import TrainedModel
from cir_export.models import RetrievalModel
from cir_export.preprocessing import check_inputs, text_input
from cir_export.samples import Samples
from cir_infer.console.progress import progress_bar
from cir_infer.engine import Engine
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.inputs.unknown_words import UNSAID
from cir_infer.runtime.explain_graph import InParts
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import ReferenceScorer, term_scores

__all__ = ["IN_PARTS", "TOLERANCE", "Answers", "Check", "answers_of", "compare", "relative"]

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest value of the vector it occurs in."""

_TIE = 1e-6
"""Scores closer than this, a few roundings of float32, have no order that two programs must share."""

_BATCH = 16
IN_PARTS = 4
"""Images of which rows are taken apart at a time: a ViT holds what each position brings in every layer."""

_K = 10

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One line of the comparison.

    Attributes:
        what: what was compared.
        compared: how many, e.g. "48 images".
        difference: the largest relative difference, or the number of lists that differ.
        limit: the largest that passes.
    """

    what: str
    compared: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit; NaN is not."""
        return self.difference <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        difference = self.difference if np.isfinite(self.difference) else None
        return {**asdict(self), "difference": difference, "passed": self.passed}


@dataclass(frozen=True)
class Answers:
    """What PyTorch makes of the samples.

    Attributes:
        rows: of the images.
        references: of them, the same where a row is the reference; None where the query is one piece, in
            which PyTorch has no such embeddings.
        text: of the texts; None likewise.
        terms: of every text with an image, which are repeated as needed.
        parts: the images' rows as sums over positions, four images at a time; none where they are no sums.
    """

    rows: Array
    references: Array | None
    text: Array | None
    terms: QueryTerms
    parts: tuple[InParts, ...]


def answers_of(trained: TrainedModel, samples: Samples, in_parts: bool, progress: bool = False) -> Answers:
    """Runs the samples through PyTorch.

    Pixels and tokens are those of the runtime's preprocessing and tokeniser.

    Args:
        trained: the model.
        samples: images and texts.
        in_parts: rows as sums over positions, too.
        progress: say how far it is.
    """
    model, texts = trained.model, samples.texts
    spec = check_inputs(trained.image, trained.text)
    pixels = [torch.from_numpy(np.array(preprocess(image, spec))) for image in samples.images]
    reader = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text))
    ids, lengths = reader.read(texts, UNSAID)

    def batches(items: Sized, unit: str, size: int = _BATCH) -> Iterator[slice]:
        starts = range(0, len(items), size)
        for start in progress_bar(starts, len(items), "asking PyTorch", unit, progress, size):
            yield slice(start, start + size)

    def batched(encode: Callable[[Tensor], Tensor]) -> Array:
        return torch.cat([encode(torch.stack(pixels[part])) for part in batches(pixels, "image")]).numpy()

    with torch.inference_mode():
        rows = batched(model.encode_gallery)
        references = rows if model.reference_is_gallery_row else batched(model.encode_reference)
        read = [
            model.encode_text(torch.from_numpy(ids[part]), torch.from_numpy(lengths[part]))
            for part in batches(ids, "text")
        ]
        text = torch.cat(read).numpy()
        queries = _queries(samples)
        terms = model.compose(torch.from_numpy(references[queries]), torch.from_numpy(text))
        parts = tuple(
            _in_parts(model, torch.stack(pixels[part]))
            for part in (batches(pixels, "image", IN_PARTS) if in_parts else ())
        )
    return Answers(
        rows,
        None if model.in_one_piece else references,
        None if model.in_one_piece else text,
        QueryTerms(
            terms.numerators.numpy(),
            None if terms.weights is None else terms.weights.numpy(),
            model.term_names,
        ),
        parts,
    )


def _queries(samples: Samples) -> npt.NDArray[np.int64]:
    """Which image goes with each text."""
    return np.arange(len(samples.texts)) % len(samples.images)


def _in_parts(model: RetrievalModel, images: Tensor) -> InParts:
    found = model.encode_gallery_in_parts(images)
    assert found is not None  # it gave a graph
    return InParts(*(part.numpy() for part in found))


def compare(
    answers: Answers, engine: Engine, samples: Samples, progress: bool = False
) -> tuple[list[Check], Array]:
    """Runs the same images and texts through the engine, texts one at a time and in batches of all lengths.

    Args:
        answers: PyTorch's.
        engine: of the bundle that was exported.
        samples: what they are of.
        progress: say how far it is.

    Returns:
        The comparison; and the engine's rows of the images.
    """
    images, texts, expected = samples.images, samples.texts, answers.terms
    queries = _queries(samples)
    found_rows = engine.encode_images(images, _BATCH, progress)
    found_references = (
        found_rows if engine.row_is_reference else engine.encode_references(images, _BATCH, progress)
    )
    found_text, alone = (
        engine.encode_texts(texts, size, together=UNSAID, progress=progress) for size in (_BATCH, 1)
    )
    found, found_alone = (
        engine.compose(
            found_references[queries] if engine.needs_reference else None,
            text if engine.needs_text else None,
        )
        for text in (found_text, alone)
    )
    images_said, texts_said = f"{len(images)} images", f"{len(texts)} texts"
    checks = [Check("gallery rows", images_said, relative(found_rows, answers.rows), TOLERANCE)]
    if not engine.row_is_reference and answers.references is not None:
        flat = [part.reshape(len(images), -1) for part in (found_references, answers.references)]
        checks.append(Check("reference embeddings", images_said, relative(*flat), TOLERANCE))
    if answers.text is not None:
        checks += [
            Check("texts in mixed batches", texts_said, relative(found_text, answers.text), TOLERANCE),
            Check("texts one by one", texts_said, relative(alone, answers.text), TOLERANCE),
        ]
    else:
        difference = relative(found_alone.numerators, expected.numerators)
        checks.append(Check("texts one by one, composed", texts_said, difference, TOLERANCE))
    checks += _compare_terms(expected, found)
    checks += _compare_scores(expected, found, answers.rows, found_rows)
    return checks, found_rows


def _compare_terms(expected: QueryTerms, found: QueryTerms) -> list[Check]:
    checks = []
    for number, name in enumerate(expected.names):
        for part, a, b in (
            ("numerator", found.numerators, expected.numerators),
            ("weight", found.weights, expected.weights),
        ):
            if a is not None and b is not None:
                difference = relative(a[:, number], b[:, number])
                checks.append(Check(f"{name}: {part}", f"{expected.queries} queries", difference, TOLERANCE))
    return checks


def _compare_scores(expected: QueryTerms, found: QueryTerms, rows: Array, found_rows: Array) -> list[Check]:
    values = [
        term_scores(terms, part.astype(float)) for terms, part in ((expected, rows), (found, found_rows))
    ]
    size = f"{expected.queries} x {len(rows)}"
    checks = [
        # Relative to the largest over all queries: a single one may score near zero everywhere.
        Check(
            f"{name}: score",
            size,
            relative(values[1][:, number].reshape(-1), values[0][:, number].reshape(-1)),
            TOLERANCE,
        )
        for number, name in enumerate(expected.names)
    ]
    scores = values[0].sum(1)
    k = min(_K, len(rows))
    lists = [
        ReferenceScorer(Rows.of(part)).topk(terms, k).rows
        for terms, part in ((expected, rows), (found, found_rows))
    ]
    differing = sum(
        not _same_order(scores[query], lists[0][query], lists[1][query]) for query in range(len(scores))
    )
    return [*checks, Check(f"top-{k} lists that differ", f"{expected.queries} queries", differing, 0)]


def _same_order(scores: Array, expected: Array, found: Array) -> bool:
    """Whether two lists agree at every rank, but for scores that are equal up to rounding."""
    ties = np.abs(scores[expected] - scores[found]) <= _TIE * np.maximum(1.0, np.abs(scores[expected]))
    return bool(((expected == found) | ties).all())


def relative(found: Array, expected: Array) -> float:
    """The largest difference, each vector's divided by its own largest value."""
    if found.shape != expected.shape:
        return float("inf")
    scale = np.abs(expected).max(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(found.astype(float) - expected) / np.where(scale > 0, scale, 1.0)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")
