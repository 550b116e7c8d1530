"""What an explanation says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.console.figures import decimals
from cir_infer.console.tables import format_table
from cir_infer.errors import CirError

__all__ = ["NOISE", "Explains", "Explanation", "Heat", "Method", "Word"]

NOISE = 1e-6
"""Differences of scores that are rounding, about."""

Method = Literal["shares", "left out", "occlusion"]
"""How a map was made. "shares": the term is their sum, exactly. "left out": the term less what it is when a
position's part is taken out of the row. "occlusion": the term less what it is when a patch of the picture is
painted over."""


@dataclass(frozen=True, eq=False)
class Heat:
    """One term of a score, over the cells of a grid on an image.

    Attributes:
        map: float32 (h, w), what each cell adds to the term, in units of the score; below 0 where it speaks
            against the hit.
        value: the term, as it was scored.
        rest: what no cell has, value - map.sum(). Of shares it is the share of the constant (biases, a class
            token) and of the rounding of the stored row; else what cells do only together.
        box: left, top, right and bottom edge of the grid in pixels of the original image. It may reach beyond
            the image where that was padded, and leaves out what was cropped.
        size: width and height of the original image in pixels.
        method: see `Method`.
    """

    map: npt.NDArray[np.float32]
    value: float
    rest: float
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    method: Method

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "value": self.value,
            "rest": self.rest,
            "map": self.map.tolist(),
            "box": list(self.box),
            "size": list(self.size),
            "method": self.method,
        }


@dataclass(frozen=True)
class Word:
    """One word of the query's text.

    Attributes:
        text: as it was typed.
        start: its first character's place in its caption.
        end: the place behind its last.
        caption: the caption's number, from 0; always 0 where the text was one string.
        worth: each term, by name, less what it is without the word.
    """

    text: str
    start: int
    end: int
    caption: int
    worth: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "text": self.text,
            "start": self.start,
            "end": self.end,
            "caption": self.caption,
            "worth": dict(self.worth),
        }


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one item of the gallery has its score in the answer to a query.

    Attributes:
        id: the item's id.
        score: the sum of the terms.
        terms: by name, each term over the item's image.
        reference: by name, what each cell of the reference is worth; empty where the system reads none.
        words: what each word is worth, in the order of the text; empty where the system reads no text, or
            there is nothing that could be left out.
        balance: factors of terms that the query asked for; all values hold them.
        exif_orientation: whether images were turned upright as their EXIF tag says; boxes and sizes are of
            pictures read so.
    """

    id: str
    score: float
    terms: Mapping[str, Heat]
    reference: Mapping[str, Heat] = field(default_factory=dict)
    words: tuple[Word, ...] = ()
    balance: Mapping[str, float] = field(default_factory=dict)
    exif_orientation: bool = False

    @property
    def method(self) -> Method:
        """How the maps of the item's image were made: "shares" or "occlusion"."""
        return next(iter(self.terms.values())).method

    @property
    def unmoved(self) -> tuple[str, ...]:
        """Names of terms that no cell of the reference moves, as where one reads the text alone."""
        return tuple(
            name for name, heat in self.reference.items() if float(np.abs(heat.map).max(initial=0.0)) <= NOISE
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `cir-query --explain --json` prints them."""
        return {
            "id": self.id,
            "score": self.score,
            "terms": {name: heat.as_dict() for name, heat in self.terms.items()},
            "reference": {name: heat.as_dict() for name, heat in self.reference.items()},
            "unmoved": list(self.unmoved),
            "words": [word.as_dict() for word in self.words],
            "balance": dict(self.balance),
        }

    def __repr__(self) -> str:
        """A table: each term with what the image's cells add to it and take from it, then the words."""
        rows = []
        for name, heat in self.terms.items():
            up, down = heat.map[heat.map > 0].sum(), heat.map[heat.map < 0].sum()
            rows.append(
                [name.replace("_", " "), *(decimals(value, 4) for value in (heat.value, up, down, heat.rest))]
            )
        text = format_table(["term", "value", "cells for", "cells against", "rest"], rows, right=range(1, 5))
        if self.terms and self.method == "occlusion":
            text += "\ncells: what the term loses when each is painted over; such values do not add up"
        if not self.words:
            return text
        names = list(self.terms)
        worth = [
            [word.text, *(decimals(word.worth[name], 4, signed=True) for name in names)]
            for word in self.words
        ]
        header = ["word", *(name.replace("_", " ") for name in names)]
        return f"{text}\n\n{format_table(header, worth, right=range(1, 1 + len(names)))}"


class Explains(Protocol):
    """What hits know of the question that found them; `explainer.Explainer` is one."""

    def explain(
        self, wanted: Sequence[tuple[Any, Any]], as_found: bool = False, progress: bool = False
    ) -> list[Explanation | CirError]:
        """Explanations of hits, or why there is none.

        Args:
            wanted: hits, each with its picture or None.
            as_found: the hits were found by this very query.
            progress: show a bar where pictures are painted over.
        """
        ...
