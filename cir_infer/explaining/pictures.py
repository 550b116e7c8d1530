"""The images of an explanation: decoded once, prepared, and where they lie on the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import PixelInput
from cir_infer.inputs.images import describe_image
from cir_infer.inputs.open_files import contents
from cir_infer.inputs.preparing import PreparedImage
from cir_infer.inputs.preprocess import decode, placement, prepare

__all__ = ["Picture", "covered", "picture_of"]

PATCHES = 7
"""Cells a side of a picture whose patches are painted over."""


@dataclass(frozen=True)
class Picture:
    """An image as an encoder takes it.

    Attributes:
        array: uint8 (H, W, 3).
        box: its edges in pixels of the original.
        size: width and height of the original.
    """

    array: npt.NDArray[np.uint8]
    box: tuple[float, float, float, float]
    size: tuple[int, int]


def picture_of(image: Any, spec: PixelInput) -> Picture:
    """Decode and prepare an image.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, PreparedImage):  # whoever prepared it kept no more than this
        return Picture(image.array_for(spec), (0.0, 0.0, spec.width, spec.height), (spec.width, spec.height))
    image = contents(image)
    decoded = decode(image, spec)
    array = prepare(decoded, spec, describe_image(image))
    return Picture(array, placement(spec.steps, decoded.size), decoded.size)


def covered(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture with one patch after the other painted over in its mean colour.

    Returns:
        uint8 (h * w, H, W, 3) for a grid of h x w patches, row by row; at most 7 x 7.
    """
    height, width = array.shape[:2]
    colour = array.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows, columns = grid_of(array)
    downs, acrosses = (
        np.linspace(0, side, n + 1).astype(int) for side, n in ((height, rows), (width, columns))
    )
    out = np.repeat(array[None], rows * columns, axis=0)
    for row in range(rows):
        for column in range(columns):
            down, across = slice(*downs[row : row + 2]), slice(*acrosses[column : column + 2])
            out[row * columns + column, down, across] = colour
    return out


def grid_of(array: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Rows and columns of the grid that `covered` takes."""
    return min(PATCHES, array.shape[0]), min(PATCHES, array.shape[1])
