"""What sheets are drawn with: a canvas in layout pixels, fonts, pictures fitted into squares."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.console.printing import printable
from cir_infer.errors import ImageError
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.images import as_encoded, load_image
from cir_infer.inputs.preparing import PreparedImage
from cir_infer.inputs.unknown_words import ALIKE

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from cir_infer.inputs.texts import Text
    from cir_infer.searcher import Reference

__all__ = [
    "BODY",
    "BOX",
    "CARD",
    "COLUMNS",
    "GAP",
    "GUTTER",
    "INK",
    "LABEL",
    "MARGIN",
    "MAX_HITS",
    "NUMBER",
    "PANEL",
    "PAPER",
    "RIGHT",
    "RULE",
    "SCALE",
    "SMALL",
    "SOFT",
    "TERM_COLOURS",
    "TITLE",
    "Page",
    "Style",
    "colour_of",
    "fitted",
    "initials",
    "loaded",
    "notes_on",
    "quoted",
    "shortened",
    "wrapped",
]

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


class Style(NamedTuple):
    """Of a text: its size in layout pixels, and its colour."""

    size: int
    colour: str


TITLE, BODY, NUMBER, SMALL, LABEL = (
    Style(23, INK),
    Style(13, INK),
    Style(15, INK),
    Style(11, SOFT),
    Style(10, SOFT),
)


class Page:
    """A canvas in layout pixels."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image: Image.Image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.image)

    def text(self, text: str, x: float, y: float, style: Style) -> None:
        """A line, from its left upper corner."""
        text = printable(text)
        self._draw.text((x * SCALE, y * SCALE), text, style.colour, style_font(style, text))

    def label(self, text: str, x: int, y: int) -> None:
        """A small heading in spaced capitals."""
        for letter in text.upper():
            self.text(letter, x, y, LABEL)
            x += self.width_of(letter, LABEL) + 1  # type: ignore[assignment]

    def width_of(self, text: str, style: Style) -> float:
        """Of a line."""
        return style_font(style, text).getlength(text) / SCALE

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle with round ends."""
        if width > 0:
            box = (x * SCALE, y * SCALE, (x + width) * SCALE - 1, (y + height) * SCALE - 1)
            self._draw.rounded_rectangle(box, min(width, height) * SCALE // 2, colour)

    def picture(self, source: Reference, x: int, y: int, side: int, frame: str | None = None) -> None:
        """An image fitted into a square with round corners."""
        found = loaded(source)
        if not isinstance(found, str):
            found = fitted(found, side * SCALE)
        self.tile(found, x, y, side, frame)

    def tile(self, content: Image.Image | str, x: int, y: int, side: int, frame: str | None = None) -> None:
        """What fits into a square with round corners, in device pixels; or a word why there is nothing."""
        from PIL import Image, ImageDraw

        box = Image.new("RGB", (side * SCALE, side * SCALE), BOX)
        if isinstance(content, str):
            font = font_of(LABEL.size)
            place = (side * SCALE / 2, side * SCALE / 2)
            ImageDraw.Draw(box).text(place, content, LABEL.colour, font, anchor="mm", align="center")
        else:
            box.paste(content, ((box.width - content.width) // 2, (box.height - content.height) // 2))
        self.image.paste(box, (x * SCALE, y * SCALE), rounded(side * SCALE))
        if frame is not None:
            edge = (x * SCALE - 5, y * SCALE - 5, (x + side) * SCALE + 4, (y + side) * SCALE + 4)
            self._draw.rounded_rectangle(edge, RADIUS * SCALE + 4, outline=frame, width=5)

    def field(self, pixels: npt.NDArray[np.uint8], x: float, y: float) -> None:
        """Colours as they are, uint8 (height, width, 3) in device pixels."""
        from PIL import Image

        self.image.paste(Image.fromarray(pixels), (round(x * SCALE), round(y * SCALE)))


@functools.cache
def rounded(side: int) -> Image.Image:
    """The mask of a square with round corners; drawn four times as large, as Pillow does not smooth them."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side * 4 - 1, side * 4 - 1), RADIUS * SCALE * 4, 255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def loaded(source: Reference, exif_orientation: bool = True) -> Image.Image | str:
    """The picture of a reference, or a word why there is none."""
    image = source.source if isinstance(source, Hit) else source
    image = image.array if isinstance(image, PreparedImage) else image
    if image is None or (isinstance(image, np.ndarray) and image.dtype != np.uint8):
        return "no image"
    try:
        return load_image(image, exif_orientation)
    except ImageError:
        return "image not\nreadable"


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image as RGB, its longer side as given, in device pixels."""
    from PIL import Image

    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return as_encoded(image).resize(size, Image.Resampling.LANCZOS)


def style_font(style: Style, text: str) -> ImageFont.FreeTypeFont:
    return font_of(style.size, "" if text.isascii() else "".join(sorted(set(text))))


@functools.lru_cache(256)
def font_of(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """The font that Pillow carries (Aileron), or an installed one where that has more of `text`'s letters."""
    from PIL import ImageFont

    bundled = ImageFont.load_default(size * SCALE)
    assert isinstance(bundled, ImageFont.FreeTypeFont)
    fonts = [bundled]
    for name in _WIDER_FONTS if missing_letters(bundled, text) else ():
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(name, size * SCALE))
    return min(fonts, key=lambda font: missing_letters(font, text))


def missing_letters(font: ImageFont.FreeTypeFont, letters: str) -> int:
    """How many letters the font draws as its empty box."""
    box = bytes(font.getmask("\U0010ffff"))
    return sum(bytes(font.getmask(letter)) == box for letter in set(letters) if not letter.isspace())


def wrapped(text: str, style: Style, width: int) -> list[str]:
    """Lines of at most `width`, six at most."""
    text = printable(" ".join(text[:400].split()))
    font = style_font(style, text)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width * SCALE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    lines = [shortened(line, style, width) for line in lines]
    return lines if len(lines) <= 6 else [*lines[:5], shortened(lines[5] + " …", style, width)]


def shortened(text: str, style: Style, width: float) -> str:
    """What fits into a width."""
    text = printable(text[:1000])
    font = style_font(style, text)
    if font.getlength(text) <= width * SCALE:
        return text
    text = text[:100]
    while text and font.getlength(text + "…") > width * SCALE:
        text = text[:-1]
    return text + "…"


def quoted(text: Text | None) -> str:
    """A text as a sheet shows it."""
    if text is None:
        return "no text"
    return "“" + " / ".join([text] if isinstance(text, str) else text) + "”"


def notes_on(hits: Hits) -> list[str]:
    """What is to be said about a query below its text."""
    notes: list[str] = []
    if hits.unknown_words:
        notes.append(f"Not in the model's vocabulary ({ALIKE}): {', '.join(hits.unknown_words)}")
    if hits.reference_id is not None:
        notes.append(f"The gallery holds the reference as {hits.reference_id}")
    if hits.coverage < 1:
        notes.append(f"Looked at {int(1000 * hits.coverage) / 10:g}% of the items; the rest did not answer")
    return notes


def initials(name: str) -> str:
    """Of a term."""
    return "".join(word[0] for word in name.split("_") if word).upper()[:3]


def colour_of(number: int) -> str:
    """Of a term, by its number."""
    return TERM_COLOURS[number % len(TERM_COLOURS)]
