"""The query's half of an explanation: its terms, and its terms without one cell or one word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import PixelInput
from cir_infer.console.progress import progress_bar
from cir_infer.engine import Engine
from cir_infer.errors import ImageError, shown
from cir_infer.explaining.explanation import Method
from cir_infer.explaining.pictures import Picture, covered, grid_of, picture_of
from cir_infer.explaining.shares import without_each
from cir_infer.explaining.words import LeftOut, leave_words_out
from cir_infer.hits import Hit
from cir_infer.inputs.images import describe_image
from cir_infer.inputs.texts import ReadText, Text
from cir_infer.scoring.balance import Balance, balanced
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.asked import Asked, ask
from cir_infer.searching.found import Source
from cir_infer.searching.recognition import LOOSER, same_rows

__all__ = ["BATCH", "Cells", "QuerySide", "query_side"]

Floats = npt.NDArray[np.float32]

BATCH = 32
"""Pictures or texts in one run of a graph."""


@dataclass(frozen=True)
class Cells:
    """The query without each cell of its reference.

    Attributes:
        terms: 1 + h * w queries: with every cell, then without each, row by row.
        grid: h and w.
        picture: the reference.
        method: how cells were taken out.
    """

    terms: QueryTerms
    grid: tuple[int, int]
    picture: Picture
    method: Method


@dataclass(frozen=True)
class QuerySide:
    """What all hits of a query share.

    Attributes:
        terms: the query as it was asked.
        cells: without each cell of the reference; None where the system reads none.
        words: those that can be left out.
        without: the query without each of them; None where there are none.
    """

    terms: QueryTerms
    cells: Cells | None
    words: tuple[LeftOut, ...]
    without: QueryTerms | None


def query_side(
    engine: Engine,
    spec: PixelInput,
    source: Source,
    question: tuple[Any, Text | None],
    balance: Balance,
    progress: bool,
) -> QuerySide:
    """Compose a query, and once more without each cell of its reference and each word of its text.

    Args:
        engine: of the searcher.
        spec: how images are prepared.
        source: holds the row of a refined Hit.
        question: reference and text.
        balance: factors of terms.
        progress: show a bar where pictures are painted over.

    Raises:
        CirError: the query cannot be answered, see `Searcher.query`, or its reference has no picture.
    """
    (asked,) = ask(engine, source, [question])
    if asked.error is not None:
        raise asked.error
    composer = _Composer(engine, balance, asked.text)
    if not engine.needs_reference:
        terms = composer.terms(None)
        cells = None
    else:
        picture = _reference_picture(asked.reference, spec)
        cells, row = _cells(engine, picture, composer, progress)
        _check_picture(engine, asked, row)
        own = None if asked.held is None else asked.held.vector[None]
        terms = cells.terms[0] if own is None else composer.terms(own)
    words: tuple[LeftOut, ...] = ()
    without = None
    if asked.text is not None:
        assert question[1] is not None
        words = tuple(leave_words_out(engine.text_reader, question[1]))
        if words:
            without = composer.without(words, None if cells is None else composer.reference)
    return QuerySide(terms, cells, words, without)


def _reference_picture(reference: Any, spec: PixelInput) -> Picture:
    if not isinstance(reference, Hit):
        return picture_of(reference, spec)
    if reference.source is None:
        raise ImageError(
            "the gallery does not know where the picture of the refined hit came from; ask with the image "
            "itself as the reference to have it explained"
        )
    return picture_of(reference.source, spec)


def _check_picture(engine: Engine, asked: Asked, row: Floats) -> None:
    """Refuse the picture of a refined hit where another is at its place by now, or on this machine."""
    held = asked.held
    if held is None:
        return
    looser = LOOSER[engine.manifest.precision]
    if not same_rows(held.rows, np.zeros(1, np.int64), row, looser)[0]:
        raise ImageError(
            f"{describe_image(asked.reference.source)} is not the image that was indexed as "
            f"{shown(asked.own)}: its row is another; ask with the image itself as the reference to have it "
            "explained"
        )


class _Composer:
    """Composes one query in variants."""

    def __init__(self, engine: Engine, balance: Balance, text: ReadText | None) -> None:
        self._engine, self._balance = engine, balance
        self._text = None if text is None else engine.encode_read([text])
        self.reference: Floats | None = None

    def terms(self, references: Floats | None) -> QueryTerms:
        """With the text as it is and each of some references; the first is the whole one."""
        if references is not None:
            self.reference = references[:1]
        text = self._text
        if text is not None and references is not None:
            text = np.repeat(text, len(references), axis=0)
        return balanced(self._engine.compose(references, text), self._balance)

    def without(self, words: tuple[LeftOut, ...], reference: Floats | None) -> QueryTerms:
        """With the reference as it is and the text without each word."""
        reads = [word.rest for word in words]
        parts = [self._engine.encode_read(reads[at : at + BATCH]) for at in range(0, len(reads), BATCH)]
        text = np.concatenate(parts)
        references = None if reference is None else np.repeat(reference, len(text), axis=0)
        return balanced(self._engine.compose(references, text), self._balance)


def _cells(engine: Engine, picture: Picture, composer: _Composer, progress: bool) -> tuple[Cells, Floats]:
    """What the cells of a reference are worth, and its row."""
    explain = engine.manifest.explain
    if explain is not None and engine.row_is_reference:
        made = engine.encode_in_parts(picture.array[None])
        references = without_each(made.parts[0], made.constant[0], explain.unit_rows)
        cells = Cells(composer.terms(references), (explain.height, explain.width), picture, "left out")
        return cells, made.rows[0]
    whole = picture.array[None]
    painted = np.concatenate([whole, covered(picture.array)])
    references = encoded(engine.encode_prepared_references, painted, "reference", progress)
    return Cells(composer.terms(references), grid_of(picture.array), picture, "occlusion"), references[0]


def encoded(
    encode: Callable[[npt.NDArray[np.uint8]], Floats],
    pictures: npt.NDArray[np.uint8],
    what: str,
    progress: bool,
) -> Floats:
    """Prepared pictures through an encoder, some at a time, behind a progress bar."""

    def batches() -> Iterator[npt.NDArray[np.uint8]]:
        for at in range(0, len(pictures), BATCH):
            yield pictures[at : at + BATCH]

    bar = progress_bar(batches(), len(pictures), f"covering the {what}", "patch", progress, BATCH)
    return np.concatenate([encode(batch) for batch in bar])
