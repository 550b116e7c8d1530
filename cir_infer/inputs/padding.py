"""Resize a picture with a border around it, without making what is padded.

A panorama padded to a square is many times as large as itself, and most of that is border. Pillow filters
along rows first, each by itself, and then along columns; so rows are padded and filtered some at a time, a
row of border is filtered once, and only what comes of the first filter is padded above and below. Where that
would take seconds, a high picture with its border on the sides, columns are filtered first and a byte may
differ by one from Pillow's; so it may where Pillow (since 13, never for squares) does so itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cir_infer.inputs.resampling import Border

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["resize_padded"]

_BAND = 1 << 22
"""Pixels that are padded and filtered along their rows at a time."""

_LONG = 1 << 28
"""Pixels in padded rows from which on columns are filtered first, where the border is on the sides alone."""


def resize_padded(
    image: Image.Image,
    border: Border,
    fill: int,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """What `image.resize` makes of a padded picture.

    Args:
        image: of mode "RGB" or "L".
        border: pixels to add left, top, right, bottom.
        fill: value of the border in every channel.
        box: left, top, right, bottom edge in the padded picture of what is resized.
        size: width and height to resize it to.
        resample: Pillow's filter.

    Returns:
        The picture; memory is that of `size[0]` columns of the padded height.
    """
    from PIL import Image

    left, top, right, bottom = border
    width, height = left + image.width + right, top + image.height + bottom
    colour = (fill,) * len(image.getbands()) if len(image.getbands()) > 1 else fill
    if not top and not bottom and width * height > _LONG:
        rows = image.resize((image.width, size[1]), resample, (0, box[1], image.width, box[3]))
        padded = Image.new(image.mode, (width, size[1]), colour)
        padded.paste(rows, (left, 0))
        return padded.resize(size, resample, (box[0], 0, box[2], size[1]))
    columns = Image.new(image.mode, (size[0], height), colour)

    def filtered(rows: Image.Image) -> Image.Image:
        return rows.resize((size[0], rows.height), resample, (box[0], 0, box[2], rows.height))

    edge = filtered(Image.new(image.mode, (width, 1), colour))
    for start, count in ((0, top), (top + image.height, bottom)):
        if count:
            columns.paste(edge.resize((size[0], count), Image.Resampling.NEAREST), (0, start))
    band = max(1, _BAND // width)
    for start in range(0, image.height, band):
        part = image.crop((0, start, image.width, min(start + band, image.height)))
        rows = Image.new(image.mode, (width, part.height), colour)
        rows.paste(part, (left, 0))
        columns.paste(filtered(rows), (0, top + start))
    return columns.resize(size, resample, (0, box[1], size[0], box[3]))
