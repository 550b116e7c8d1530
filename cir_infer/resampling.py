"""Pad to a square, resize, crop the middle: in one go, with the same bytes as one after the other.

Pillow resamples along one direction, rounds to bytes, then along the other. Which comes first depends on
its version and on the shape, but for a square that stays square it is always the rows. So a border above
or below need not exist before the second pass, and what the crop throws away need not be computed; the
latter only where the crop's edges, mapped into the source, are exact in floating point, which they are for
a size that is a power of two (the 256 of almost every system).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Border", "resize_padded_square"]

Border = tuple[int, int, int, int]
"""Pixels to add left, top, right, bottom."""

_LARGEST_EXACT = 1 << 20


def resize_padded_square(
    image: Image.Image, border: Border, fill: int, size: int, margin: int, resample: Image.Resampling
) -> Image.Image:
    """The middle of a resized square that an image and its border make.

    Args:
        image: 8-bit, of mode "L" or "RGB".
        border: what makes it square.
        fill: value of the border in every channel.
        size: side to resize the square to.
        margin: how much is then cut off on every side, less than half of `size`.
        resample: a filter of Pillow's.

    Returns:
        (size - 2 margin) x (size - 2 margin) pixels.
    """
    left, top, right, bottom = border
    side = image.width + left + right
    exact = size & (size - 1) == 0 and side < _LARGEST_EXACT
    cut, rest = (margin, 0) if exact else (0, margin)
    inner = size - 2 * cut
    start, end = cut * side / size, (size - cut) * side / size
    if left or right:
        image = _padded(image, (left, 0, right, 0), fill)
    if top or bottom:
        if (inner, start) != (side, 0):
            image = image.resize((inner, image.height), resample, (start, 0, end, image.height))
        image = _padded(image, (0, top, 0, bottom), fill)
        image = image.resize((inner, inner), resample, (0, start, inner, end))
    else:
        image = image.resize((inner, inner), resample, (start, start, end, end))
    return image.crop((rest, rest, size - rest, size - rest)) if rest else image


def _padded(image: Image.Image, border: Border, fill: int) -> Image.Image:
    from PIL import Image

    left, top, right, bottom = border
    size = (image.width + left + right, image.height + top + bottom)
    padded = Image.new(image.mode, size, (fill,) * 3 if image.mode == "RGB" else fill)
    padded.paste(image, (left, top))
    return padded
