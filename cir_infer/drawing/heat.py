"""Colours of signed values: a hue for each term, another for what speaks against it, zero without colour.

Steps of a value are steps of the same size to the eye: in Oklab (Ottosson, 2020) lightness falls and chroma
grows in proportion to it. What is below zero is hatched as well, so that it can be told without colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cir_infer.explaining.explanation import NOISE

if TYPE_CHECKING:
    from PIL import Image

    from cir_infer.explaining.explanation import Heat

__all__ = ["AGAINST", "coloured", "on_picture", "scale_of", "values_on"]

AGAINST = "#b02a45"
"""The hue of values below zero."""

DROP, CHROMA = 0.34, 0.155
"""How much lightness the largest value takes, and what chroma it has."""

_DARK, _LIGHT = 0.62, 0.97
"""Lightness of black and white of the picture below the colours."""

_HATCH = 10
"""Device pixels from one line of the hatching to the next."""

_FAINT = 0.06
"""Values below this part of the largest are not hatched."""

Array = npt.NDArray[np.float64]

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def scale_of(values: Iterable[npt.NDArray[np.float32]]) -> float:
    """The size of the largest value of all; 0 where there is none, or only noise of rounding."""
    most = max((float(np.abs(one).max(initial=0.0)) for one in values), default=0.0)
    return most if most > NOISE else 0.0


def coloured(strength: Array, colour: str, lightness: Array | float) -> npt.NDArray[np.uint8]:
    """Signed strengths as colours.

    Args:
        strength: (h, w), from -1 to 1.
        colour: of values above zero, as "#rrggbb".
        lightness: of what lies below, (h, w) or one for all, from 0 to 1.

    Returns:
        uint8 (h, w, 3).
    """
    size = np.abs(strength).clip(0, 1)
    hue = np.where(strength[..., None] < 0, _hue(AGAINST), _hue(colour))
    lab = np.empty((*strength.shape, 3))
    lab[..., 0] = lightness - DROP * size * (1 - 0.25 * _hatched(strength))
    lab[..., 1:] = hue * (CHROMA * size)[..., None]
    return _rgb(lab)


def values_on(heat: Heat, width: int, height: int) -> Array:
    """The map on its picture drawn at a size: (height, width), 0 where the grid does not reach."""
    left, top, right, bottom = heat.box
    rows, columns = heat.map.shape
    x = (np.arange(width) + 0.5) * heat.size[0] / width
    y = (np.arange(height) + 0.5) * heat.size[1] / height
    column = np.floor((x - left) / (right - left) * columns).astype(int)
    row = np.floor((y - top) / (bottom - top) * rows).astype(int)
    inside = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
    found = heat.map[row.clip(0, rows - 1)[:, None], column.clip(0, columns - 1)]
    return np.where(inside, found, 0.0).astype(np.float64)


def on_picture(picture: Image.Image, heat: Heat, scale: float, colour: str) -> Image.Image:
    """A map over its picture, which is in grey.

    Args:
        picture: RGB, of any size, uncropped.
        heat: its map.
        scale: the value that has the full colour; 0 for no colour at all.
        colour: of values above zero.
    """
    from PIL import Image

    grey = np.asarray(picture.convert("L"), np.float64) / 255
    strength = values_on(heat, *picture.size) / (scale or np.inf)
    return Image.fromarray(coloured(strength, colour, _DARK + (_LIGHT - _DARK) * grey))


def _hatched(strength: Array) -> Array:
    """1 on diagonal lines where a value is below zero, else 0."""
    down, across = np.indices(strength.shape)
    lines: Array = ((strength < -_FAINT) & ((down + across) % _HATCH < 3)).astype(np.float64)
    return lines


def _hue(colour: str) -> Array:
    """A unit vector in Oklab's plane of colours."""
    encoded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    plane: Array = (_TO_LAB @ np.cbrt(_TO_LMS @ linear))[1:]
    plane /= np.linalg.norm(plane)
    return plane


def _rgb(lab: Array) -> npt.NDArray[np.uint8]:
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels: npt.NDArray[np.uint8] = (encoded * 255).round().astype(np.uint8)
    return pixels
