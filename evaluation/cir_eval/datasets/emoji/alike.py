"""Which pictures of a style nobody can tell apart: OpenMoji draws many a man as it draws the person."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["Look", "alike", "look_of"]

_SIDE = 36
_LEAST = 1.0
"""Root mean square difference at half the size, of 255; in all three styles hardly any is between 1 and 2."""

Look = npt.NDArray[np.uint8]


def look_of(picture: Image.Image) -> Look:
    """A picture at half the size, uint8 (36 * 36 * 3,)."""
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.uint8).reshape(-1)


def alike(looks: Mapping[str, Look]) -> list[list[str]]:
    """Groups of ids whose pictures differ by less than a step, by themselves or through others of the group.

    Args:
        looks: by id, from `look_of`.

    Returns:
        Groups of at least two, in the order of the ids.
    """
    ids = list(looks)
    pixels = np.stack([looks[id_] for id_ in ids]).astype(np.float32)
    squares = np.square(pixels).sum(1)
    leader = list(range(len(ids)))
    for start in range(0, len(ids), 512):
        part = slice(start, start + 512)
        distances = squares[part, None] + squares[None] - 2 * pixels[part] @ pixels.T
        # In float32 the difference of such sums is off by some; what comes near is computed again.
        for near, other in np.argwhere(distances < 4 * _LEAST**2 * pixels.shape[1]):
            row = start + int(near)
            if row < other and _difference(pixels[row], pixels[other]) < _LEAST:
                first, second = _leader(leader, row), _leader(leader, int(other))
                leader[max(first, second)] = min(first, second)
    groups: dict[int, list[str]] = {}
    for row, id_ in enumerate(ids):
        groups.setdefault(_leader(leader, row), []).append(id_)
    return [group for group in groups.values() if len(group) > 1]


def _difference(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(a - b).mean()))


def _leader(leader: list[int], row: int) -> int:
    while leader[row] != row:
        row = leader[row]
    return row
