"""Which rows of an answer are the reference itself: the same file, or the same picture under any name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.inputs.arguments import plain_path
from cir_infer.scoring.contract import Rows

__all__ = ["LOOSER", "FileName", "same_rows"]

_AT_ONCE, _VALUES_AT_ONCE = 4096, 1 << 24
_CLOSE = 2e-3
"""The largest difference of two encodings of one picture, as a part of the largest value. Runs in other
batches, on other machines and rounding to float16 stay below a quarter of it; different pictures differ by
a hundred times as much."""

LOOSER = {"float32": 1.0, "float16": 5.0, "bfloat16": 10.0, "int8": 20.0}
"""How much further apart than in float32 rows of one picture may lie that two devices or libraries made, by
the bundle's precision: 4% in int8, where those of different pictures differ by a fifth."""


def same_rows(
    rows: Rows, chosen: npt.NDArray[np.int64], reference: npt.NDArray[np.float32], looser: float = 1.0
) -> npt.NDArray[np.bool_]:
    """Which of the chosen rows are an encoding of the reference, up to rounding.

    Args:
        rows: of the gallery.
        chosen: row numbers (n,), -1 for none.
        reference: the row of the reference image, float32 (D,) or (M, D).
        looser: so many times as far apart as in float32 may two rows be, see `LOOSER`.
    """
    found = np.zeros(len(chosen), np.bool_)
    places = np.flatnonzero(chosen >= 0)
    # int8 rows are rounded to steps of a 127th of their largest value.
    allowed = float(np.abs(reference).max()) * (
        looser * _CLOSE + (0.6 / 127 if rows.dtype == np.int8 else 0.0)
    )
    step = max(1, min(_AT_ONCE, _VALUES_AT_ONCE // max(1, reference.size)))
    for start in range(0, len(places), step):
        part = places[start : start + step]
        difference = np.abs(rows.take(chosen[part]) - reference).reshape(len(part), -1).max(axis=1)
        found[part] = difference <= allowed
    return found


class FileName:
    """The file that a reference names, where it is a path.

    Args:
        reference: what a query was asked with.
    """

    def __init__(self, reference: Any) -> None:
        self._path = plain_path(reference) if isinstance(reference, (str, os.PathLike)) else None
        self._name = None if self._path is None else os.path.basename(self._path)  # noqa: PTH119
        self._real: str | None = None

    def is_of(self, source: str | None) -> bool:
        """Whether an item came from this file; links on the way to it are followed."""
        if self._path is None or source is None:
            return False
        if self._path == source:
            return True
        if os.path.basename(source) != self._name:  # noqa: PTH119
            return False
        try:
            self._real = self._real or os.path.realpath(self._path)
            return self._real == os.path.realpath(source)
        except (OSError, ValueError):
            return False
