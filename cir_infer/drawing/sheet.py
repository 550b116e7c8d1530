"""A contact sheet: the reference, the text and the ranked hits with their scores, as one picture."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cir_infer.console.printing import printable
from cir_infer.errors import ImageError, UsageError, shown
from cir_infer.hits import Hit, Hits, weighted
from cir_infer.inputs.arguments import checked_list
from cir_infer.inputs.images import load_image
from cir_infer.inputs.preparing import PreparedImage

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from cir_infer.inputs.texts import Text
    from cir_infer.searcher import Reference

__all__ = ["contact_sheet"]

SCALE = 2
"""Device pixels per layout pixel: sharp on a HiDPI display and in print."""

MARGIN, PANEL, GUTTER, CARD, GAP, COLUMNS = 44, 264, 52, 168, 22, 5
MAX_HITS = 100
RADIUS = 6
PAPER, BOX, INK, SOFT, RULE, RIGHT = "#fbfaf8", "#f0eeea", "#1d1d1b", "#77736c", "#dedad3", "#2e7d4f"
TERM_COLOURS = ("#35618e", "#c8892b", "#7a5195", "#4f8a76")
_WIDER_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
)


class _Style(NamedTuple):
    size: int
    colour: str


TITLE, BODY, NUMBER, SMALL, LABEL = (
    _Style(23, INK),
    _Style(13, INK),
    _Style(15, INK),
    _Style(11, SOFT),
    _Style(10, SOFT),
)


def contact_sheet(
    reference: Reference, text: Text | None, hits: Hits, correct: Collection[str] = ()
) -> Image.Image:
    """Draw the answer to a query.

    Args:
        reference: the query's image or Hit.
        text: the query's text.
        hits: the answer; their images are read from `Hit.source`, a card without a readable image
            says so. The first 100 are drawn.
        correct: ids of right answers, where they are known; they get a green frame.

    Returns:
        An RGB image at twice its layout size, 144 dpi when saved as `image.save(path, dpi=(144, 144))`.
    """
    hits, correct = _checked(text, hits, correct)
    hits = hits[:MAX_HITS]
    columns = max(1, min(COLUMNS, len(hits)))
    names = list(hits[0].terms) if hits else []
    card_height = CARD + 34 + 15 * len(names)
    rows = -(-len(hits) // columns)
    width = 2 * MARGIN + PANEL + GUTTER + columns * (CARD + GAP) - GAP
    lines = _wrap(_quoted(text), TITLE, PANEL)
    notes = [line for note in _notes(hits) for line in _wrap(note, SMALL, PANEL)]
    panel_height = 22 + PANEL + 30 + 22 + len(lines) * 30 + len(notes) * 16 + 24 + 18 * len(names)
    height = 2 * MARGIN + max(panel_height, 22 + rows * (card_height + GAP) - GAP)
    page = _Page(width, height)

    left, top = MARGIN, MARGIN
    page.label("Reference", left, top)
    page.picture(reference, left, top + 22, PANEL)
    below = top + 22 + PANEL + 30
    page.label("Text", left, below)
    for number, line in enumerate(lines):
        page.text(line, left, below + 20 + number * 30, TITLE)
    below += len(lines) * 30
    for number, line in enumerate(notes):
        page.text(line, left, below + 26 + number * 16, SMALL)
    below += len(notes) * 16
    for number, name in enumerate(names if len(names) > 1 else ()):
        y = below + 22 + 24 + number * 18
        page.bar(left, y + 3, 14, 8, _colour(number))
        factor = weighted(hits.balance.get(name))
        page.text(f"{_initials(name)}  {name.replace('_', ' ')}{factor}", left + 22, y, SMALL)

    left += PANEL + GUTTER
    page.label(("No hit", "Best match", f"{len(hits)} best matches")[min(len(hits), 2)], left, top)
    reach = max((abs(value) for hit in hits for value in hit.terms.values()), default=1.0) or 1.0
    for number, hit in enumerate(hits):
        x = left + number % columns * (CARD + GAP)
        y = top + 22 + number // columns * (card_height + GAP)
        page.picture(hit, x, y, CARD, RIGHT if hit.id in correct else None)
        _caption(page, hit, x, y + CARD + 9, reach)
    return page.image


def _checked(text: Any, hits: Any, correct: Any) -> tuple[Hits, frozenset[str]]:
    """Hits and ids that can be drawn; raises `UsageError` for anything else."""
    captions = [] if text is None else [text] if isinstance(text, str) else text
    if not isinstance(captions, (list, tuple)) or not all(isinstance(one, str) for one in captions):
        raise UsageError(f"text is {shown(text)}; expected a text, a list of captions, or None")
    if not isinstance(hits, Hits):
        hits = Hits(checked_list("hits", hits, "Hit"))
    for hit in hits:
        if not isinstance(hit, Hit) or not isinstance(hit.id, str):
            raise UsageError(f"hits holds {shown(hit)}; expected the hits of an answer")
    if isinstance(correct, str):
        raise UsageError(f"correct is one id ({shown(correct)}); expected a list of ids")
    ids = list(checked_list("correct", correct, "id"))
    return hits, frozenset(item for item in ids if isinstance(item, str))


def _notes(hits: Hits) -> list[str]:
    """What is to be said about the query below its text."""
    notes: list[str] = []
    if hits.unknown_words:
        notes.append("not in the model's vocabulary: " + ", ".join(hits.unknown_words))
    if hits.reference_id is not None:
        notes.append(f"the gallery holds the reference as {hits.reference_id}")
    return notes


def _caption(page: _Page, hit: Hit, x: int, y: int, reach: float) -> None:
    rank = f"{hit.rank}"
    page.text(rank, x, y, NUMBER)
    score = f"{hit.score:.3f}"
    page.text(score, x + CARD - page.width_of(score, NUMBER), y, NUMBER)
    start = x + page.width_of(rank, NUMBER) + 8
    space = x + CARD - page.width_of(score, NUMBER) - 10 - start
    page.text(_shorten(hit.id, SMALL, space), start, y + 3, SMALL)
    several = len(hit.terms) > 1
    start, room = (24, CARD - 24 - 40) if several else (0, CARD)
    for number, (name, value) in enumerate(hit.terms.items()):
        line = y + 25 + number * 15
        if several:
            shown = f"{value:.3f}"
            page.text(_initials(name), x, line - 1, LABEL)
            page.text(shown, x + CARD - page.width_of(shown, LABEL), line - 1, LABEL)
        page.bar(x + start, line + 4, room, 4, RULE)
        page.bar(x + start, line + 4, round(room * max(0.0, value) / reach), 4, _colour(number))


class _Page:
    """A canvas in layout pixels."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image: Image.Image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.image)

    def text(self, text: str, x: float, y: float, style: _Style) -> None:
        text = printable(text)
        self._draw.text((x * SCALE, y * SCALE), text, style.colour, _style_font(style, text))

    def label(self, text: str, x: int, y: int) -> None:
        """A small heading in spaced capitals."""
        for letter in text.upper():
            self.text(letter, x, y, LABEL)
            x += self.width_of(letter, LABEL) + 1  # type: ignore[assignment]

    def width_of(self, text: str, style: _Style) -> float:
        return _style_font(style, text).getlength(text) / SCALE

    def bar(self, x: int, y: int, width: int, height: int, colour: str) -> None:
        if width > 0:
            box = (x * SCALE, y * SCALE, (x + width) * SCALE - 1, (y + height) * SCALE - 1)
            self._draw.rounded_rectangle(box, min(width, height) * SCALE // 2, colour)

    def picture(self, source: Reference, x: int, y: int, side: int, frame: str | None = None) -> None:
        """An image fitted into a square with round corners."""
        from PIL import Image, ImageDraw

        box = Image.new("RGB", (side * SCALE, side * SCALE), BOX)
        loaded = _loaded(source)
        if isinstance(loaded, str):
            font = _font(LABEL.size)
            place = (side * SCALE / 2, side * SCALE / 2)
            ImageDraw.Draw(box).text(place, loaded, LABEL.colour, font, anchor="mm", align="center")
        else:
            fitted = _fitted(loaded, side * SCALE)
            box.paste(fitted, ((box.width - fitted.width) // 2, (box.height - fitted.height) // 2))
        self.image.paste(box, (x * SCALE, y * SCALE), _rounded(side * SCALE))
        if frame is not None:
            edge = (x * SCALE - 5, y * SCALE - 5, (x + side) * SCALE + 4, (y + side) * SCALE + 4)
            self._draw.rounded_rectangle(edge, RADIUS * SCALE + 4, outline=frame, width=5)


@functools.cache
def _rounded(side: int) -> Image.Image:
    """The mask of a square with round corners; drawn four times as large, as Pillow does not smooth them."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side * 4 - 1, side * 4 - 1), RADIUS * SCALE * 4, 255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def _loaded(source: Reference) -> Image.Image | str:
    """The picture of a reference, or a word why there is none."""
    image = source.source if isinstance(source, Hit) else source
    image = image.array if isinstance(image, PreparedImage) else image
    if image is None or (isinstance(image, np.ndarray) and image.dtype != np.uint8):
        return "no image"
    try:
        return load_image(image, exif_orientation=True)
    except ImageError:
        return "image not\nreadable"


def _fitted(image: Image.Image, side: int) -> Image.Image:
    from PIL import Image

    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # For looking at, transparency shows the card; the encoder sees what the manifest says.
        card = Image.new("RGBA", image.size, BOX)
        image = Image.alpha_composite(card, image.convert("RGBA"))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _style_font(style: _Style, text: str) -> ImageFont.FreeTypeFont:
    return _font(style.size, "" if text.isascii() else "".join(sorted(set(text))))


@functools.lru_cache(256)
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """The font that Pillow carries (Aileron), or an installed one where that has more of `text`'s letters."""
    from PIL import ImageFont

    bundled = ImageFont.load_default(size * SCALE)
    assert isinstance(bundled, ImageFont.FreeTypeFont)
    fonts = [bundled]
    for name in _WIDER_FONTS if _missing(bundled, text) else ():
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(name, size * SCALE))
    return min(fonts, key=lambda font: _missing(font, text))


def _missing(font: ImageFont.FreeTypeFont, letters: str) -> int:
    """How many letters the font draws as its empty box."""
    box = bytes(font.getmask("\U0010ffff"))
    return sum(bytes(font.getmask(letter)) == box for letter in set(letters) if not letter.isspace())


def _quoted(text: Text | None) -> str:
    if text is None:
        return "no text"
    return "“" + " / ".join([text] if isinstance(text, str) else text) + "”"


def _wrap(text: str, style: _Style, width: int) -> list[str]:
    """Lines of at most `width`, six at most."""
    text = printable(" ".join(text[:400].split()))
    font = _style_font(style, text)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width * SCALE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    lines = [_shorten(line, style, width) for line in lines]
    return lines if len(lines) <= 6 else [*lines[:5], _shorten(lines[5] + " …", style, width)]


def _shorten(text: str, style: _Style, width: float) -> str:
    text = printable(text[:1000])
    font = _style_font(style, text)
    if font.getlength(text) <= width * SCALE:
        return text
    text = text[:100]
    while text and font.getlength(text + "…") > width * SCALE:
        text = text[:-1]
    return text + "…"


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word).upper()[:3]


def _colour(number: int) -> str:
    return TERM_COLOURS[number % len(TERM_COLOURS)]
