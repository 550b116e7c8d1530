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
    image: Image.Image,
    border: Border,
    fill: int,
    box: tuple[float, float, float, float],
    size: int,
    margin: int,
    resample: Image.Resampling,
) -> Image.Image:
    """The middle of a resized square that an image and its border make.

    Args:
        image: 8-bit, of mode "L" or "RGB".
        border: what is added to it.
        fill: value of the border in every channel.
        box: left, top, right, bottom edge of the square in what that makes. The whole of it, but for a JPEG
            decoded at a part of its size, whose true edges lie between pixels.
        size: side to resize the square to.
        margin: how much is then cut off on every side, less than half of `size`.
        resample: a filter of Pillow's.

    Returns:
        (size - 2 margin) x (size - 2 margin) pixels.
    """
    left, top, right, bottom = border
    side = box[2] - box[0]
    exact = size & (size - 1) == 0 and side < _LARGEST_EXACT
    cut, rest = (margin, 0) if exact else (0, margin)
    inner = size - 2 * cut
    start, end = cut * side / size, (size - cut) * side / size
    x, y = (box[0] + start, box[0] + end), (box[1] + start, box[1] + end)
    if left or right:
        image = _padded(image, (left, 0, right, 0), fill)
    if top or bottom:
        if (inner, *x) != (image.width, 0, image.width):
            image = image.resize((inner, image.height), resample, (x[0], 0, x[1], image.height))
        image = _padded(image, (0, top, 0, bottom), fill)
        image = image.resize((inner, inner), resample, (0, y[0], inner, y[1]))
    else:
        image = image.resize((inner, inner), resample, (x[0], y[0], x[1], y[1]))
    return image.crop((rest, rest, size - rest, size - rest)) if rest else image


def _padded(image: Image.Image, border: Border, fill: int) -> Image.Image:
    from PIL import Image

    left, top, right, bottom = border
    size = (image.width + left + right, image.height + top + bottom)
    padded = Image.new(image.mode, size, (fill,) * 3 if image.mode == "RGB" else fill)
    padded.paste(image, (left, top))
    return padded
