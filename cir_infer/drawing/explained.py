"""A contact sheet that says why: maps of each term over the hits and the reference, words by their worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cir_infer.console.figures import decimals
from cir_infer.drawing.heat import coloured, on_picture, scale_of
from cir_infer.drawing.page import (
    GAP,
    GUTTER,
    INK,
    LABEL,
    MARGIN,
    NUMBER,
    PANEL,
    RIGHT,
    RULE,
    SCALE,
    SMALL,
    SOFT,
    TITLE,
    Page,
    Style,
    colour_of,
    fitted,
    initials,
    loaded,
    notes_on,
    quoted,
    shortened,
    wrapped,
)
from cir_infer.errors import CirError
from cir_infer.explaining.explanation import Explanation, Heat
from cir_infer.hits import Hit, Hits, weighted

if TYPE_CHECKING:
    from PIL import Image

    from cir_infer.inputs.texts import Text
    from cir_infer.searcher import Reference

__all__ = ["explained_sheet"]

TILE, INNER, LINE = 136, 6, 40
"""Side of a picture in a card, the space between two, and what a term takes below them."""

LEGEND = 62
"""Height of one term's part of the legend."""

_PAPER_LIGHTNESS, _LEGEND_LIGHTNESS = 0.985, 0.9
_WORDS = Style(11, INK)


def explained_sheet(
    reference: Reference, text: Text | None, hits: Hits, correct: frozenset[str]
) -> Image.Image:
    """See `contact_sheet`; there is at least one hit."""
    found = hits.explain_all(errors="return")
    good = [one for one in found if isinstance(one, Explanation)]
    scales = _Scales(good, list(hits[0].terms))
    card = (1 + len(scales.names)) * (TILE + INNER) - INNER
    columns = max(1, min(len(hits), (3, 2)[len(scales.names) > 1] if len(scales.names) < 4 else 1))
    card_height = TILE + 34 + LINE * len(scales.names)
    rows = -(-len(hits) // columns)
    panel = _Panel(reference, text, hits, good, scales)
    width = 2 * MARGIN + PANEL + GUTTER + columns * (card + GAP) - GAP
    height = 2 * MARGIN + max(panel.height, 22 + rows * (card_height + GAP) - GAP)
    page = Page(width, height)
    panel.draw(page, MARGIN, MARGIN)
    left = MARGIN + PANEL + GUTTER
    said = "Best match" if len(hits) == 1 else f"{len(hits):,} best matches"
    page.label(f"{said}, and what made their terms", left, MARGIN)
    reach = max((abs(value) for hit in hits for value in hit.terms.values()), default=1.0) or 1.0
    for number, (hit, one) in enumerate(zip(hits, found, strict=True)):
        x = left + number % columns * (card + GAP)
        y = MARGIN + 22 + number // columns * (card_height + GAP)
        _card(page, hit, one, scales, (x, y), card, reach, RIGHT if hit.id in correct else None)
    return page.image


class _Scales:
    """The largest value of each term: over all hits' maps, over the reference's, over words."""

    def __init__(self, found: Sequence[Explanation], names: list[str]) -> None:
        self.names = names
        self.hits = {name: scale_of([one.terms[name].map for one in found]) for name in names}
        best = found[:1]
        self.reference = {
            name: scale_of([one.reference[name].map for one in best if one.reference]) for name in names
        }
        self.words = {
            name: scale_of([np.array([word.worth[name] for word in one.words], np.float32) for one in found])
            for name in names
        }


class _Panel:
    """The left side: the question, what its reference is worth, and how to read the colours."""

    def __init__(
        self,
        reference: Reference,
        text: Text | None,
        hits: Hits,
        found: Sequence[Explanation],
        scales: _Scales,
    ) -> None:
        self._reference, self._hits, self._scales = reference, hits, scales
        self._best = next((one for one in found if one.reference), None)
        self._lines = wrapped(quoted(text), TITLE, PANEL)
        self._notes = [line for note in _notes(hits, found) for line in wrapped(note, SMALL, PANEL)]
        across = len(scales.names)
        self._tile = min(TILE, (PANEL - (across - 1) * INNER) // across)
        maps = 22 + self._tile + 26 if self._best is not None else 0
        self.height = (
            22 + PANEL + 26 + maps + 22 + len(self._lines) * 30 + len(self._notes) * 16 + 40 + across * LEGEND
        )

    def draw(self, page: Page, x: int, y: int) -> None:
        page.label("Reference", x, y)
        page.picture(self._reference, x, y + 22, PANEL)
        y += 22 + PANEL + 26
        if self._best is not None:
            page.label("What its parts are worth to the first", x, y)
            for number, name in enumerate(self._scales.names):
                tile = self._worth(self._best, number, name)
                page.tile(tile, x + number * (self._tile + INNER), y + 22, self._tile)
            y += 22 + self._tile + 26
        page.label("Text", x, y)
        for number, line in enumerate(self._lines):
            page.text(line, x, y + 20 + number * 30, TITLE)
        y += 22 + len(self._lines) * 30 + 6
        for number, line in enumerate(self._notes):
            page.text(line, x, y + number * 16, SMALL)
        y += len(self._notes) * 16 + 18
        page.label("In units of the score", x, y)
        for number, name in enumerate(self._scales.names):
            self._legend(page, number, name, x, y + 22 + number * LEGEND)

    def _worth(self, best: Explanation, number: int, name: str) -> Image.Image | str:
        """What the reference's parts are worth to a term of the best hit."""
        if name in best.unmoved:
            return "no part of it\nmoves this term"
        scale = self._scales.reference[name]
        return _overlay(self._reference, best.reference[name], best, self._tile, number, scale)

    def _legend(self, page: Page, number: int, name: str, x: int, y: int) -> None:
        """The colours from the largest value below zero over zero to the largest above it."""
        scales = self._scales
        title = f"{initials(name)}  {name.replace('_', ' ')}{weighted(self._hits.balance.get(name))}"
        page.text(title, x, y, Style(11, INK))
        strength = np.tile(np.linspace(-1, 1, PANEL * SCALE), (10 * SCALE, 1))
        page.field(coloured(strength, colour_of(number), _LEGEND_LIGHTNESS), x, y + 18)
        page.bar(x + PANEL / 2 - 0.5, y + 15, 1, 16, INK)
        most = scales.hits[name]
        for at, value in ((0.0, -most), (0.5, 0.0), (1.0, most)):
            said = decimals(value, 3, signed=True)
            place = x + at * (PANEL - page.width_of(said, LABEL))
            page.text(said, place, y + 31, LABEL)
        others = {"reference": scales.reference[name], "words": scales.words[name]}
        said = ", ".join(f"{what} ±{size:.2g}" for what, size in others.items() if size)
        if said:
            page.text(said, x + PANEL - page.width_of(said, LABEL), y + 1, LABEL)


def _notes(hits: Hits, found: Sequence[Explanation]) -> list[str]:
    notes = notes_on(hits)
    if found and found[0].method == "shares":
        notes.append("Cells of a hit, and the rest, add up to its term. Hatched: against the hit.")
    elif found:
        notes.append("By painting over each cell of a hit: what its term loses. Hatched: what it gains.")
    return notes


def _overlay(
    source: Any, heat: Heat, explanation: Explanation, side: int, number: int, scale: float
) -> Image.Image | str:
    picture = loaded(source, explanation.exif_orientation)
    if isinstance(picture, str):
        return picture
    return on_picture(fitted(picture, side * SCALE), heat, scale, colour_of(number))


def _card(
    page: Page,
    hit: Hit,
    found: Explanation | CirError,
    scales: _Scales,
    place: tuple[int, int],
    width: int,
    reach: float,
    frame: str | None,
) -> None:
    x, y = place
    page.picture(hit, x, y, TILE, frame)
    for number, name in enumerate(scales.names):
        content: Image.Image | str = "not explained"
        if isinstance(found, Explanation):
            content = _overlay(hit, found.terms[name], found, TILE, number, scales.hits[name])
        page.tile(content, x + (number + 1) * (TILE + INNER), y, TILE)
    y += TILE + 8
    rank, score = f"{hit.rank}", decimals(hit.score, 3)
    page.text(rank, x, y, NUMBER)
    page.text(score, x + width - page.width_of(score, NUMBER), y, NUMBER)
    start = x + page.width_of(rank, NUMBER) + 8
    page.text(shortened(hit.id, SMALL, x + width - start - 60), start, y + 3, SMALL)
    if isinstance(found, CirError):
        page.text(shortened(str(found), SMALL, width), x, y + 24, SMALL)
        return
    for number in range(len(scales.names)):
        _term(page, hit, found, number, scales, (x, y + 24 + number * LINE), width, reach)


def _term(
    page: Page,
    hit: Hit,
    found: Explanation,
    number: int,
    scales: _Scales,
    place: tuple[int, int],
    width: int,
    reach: float,
) -> None:
    """A term's value and rest, and below it the words by their worth."""
    x, y = place
    name = scales.names[number]
    several = len(scales.names) > 1
    start = 24 if several else 0
    value, rest = decimals(hit.terms[name], 3), f"rest {decimals(found.terms[name].rest, 3, signed=True)}"
    page.text(initials(name) if several else "", x, y - 1, LABEL)
    page.text(rest, x + width - page.width_of(rest, LABEL), y - 1, LABEL)
    page.text(value, x + width - 74 - page.width_of(value, LABEL), y - 1, Style(10, INK))
    room = width - start - 74 - 44
    page.bar(x + start, y + 4, room, 4, RULE)
    page.bar(x + start, y + 4, round(room * max(0.0, hit.terms[name]) / reach), 4, colour_of(number))
    _words(page, found, number, scales, (x + start, y + 14), width - start)


def _words(
    page: Page,
    found: Explanation,
    number: int,
    scales: _Scales,
    place: tuple[float, float],
    width: float,
) -> None:
    """One line of the text, each word on the colour of its worth; dots stand for what does not fit."""
    x, y = place
    name = scales.names[number]
    end = x + width - page.width_of(" …", _WORDS)
    for word in found.words:
        length = page.width_of(word.text, _WORDS)
        if x + length + 6 > end:
            page.text("…", x, y, Style(11, SOFT))
            return
        size = (round(15 * SCALE), round((length + 6) * SCALE))
        strength = np.full(size, word.worth[name] / (scales.words[name] or np.inf))
        page.field(coloured(strength, colour_of(number), _PAPER_LIGHTNESS), x, y)
        page.text(word.text, x + 3, y + 0.5, _WORDS)
        x += length + 8
