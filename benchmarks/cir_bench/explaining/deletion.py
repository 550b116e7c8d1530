"""The deletion curve: what is left of a term when the cells that a map calls largest are painted over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cir_bench.explaining.methods import Maps
from cir_infer.engine import Engine
from cir_infer.explaining.shares import values_of
from cir_infer.runtime.graph import Array
from cir_infer.scoring.contract import QueryTerms

__all__ = ["GRID", "PARTS", "term_left"]

GRID = 9
"""Cells a side of the pictures whose cells are painted over, the same for every method."""

PARTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Of the cells that are painted over."""


def term_left(
    engine: Engine, picture: Array, heat: Maps, terms: QueryTerms, term: int, parts: Sequence[float] = PARTS
) -> npt.NDArray[np.float64]:
    """The term when the largest of a map's cells are painted over in the picture's mean colour.

    Args:
        engine: encodes the painted pictures.
        picture: uint8 (H, W, 3).
        heat: (h, w), laid over the picture by its nearest cells.
        terms: one query.
        term: its number.
        parts: of the cells.

    Returns:
        float64, one for each part.
    """
    height, width = picture.shape[:2]
    at = [((np.arange(GRID) + 0.5) * side / GRID).astype(int) for side in heat.shape]
    order = np.argsort(-heat[at[0][:, None], at[1]].reshape(-1), kind="stable")
    down, across = (np.linspace(0, side, GRID + 1).astype(int) for side in (height, width))
    colour = picture.reshape(-1, 3).mean(0).round().astype(np.uint8)
    painted = []
    for part in parts:
        one = picture.copy()
        for cell in order[: round(part * GRID * GRID)]:
            row, column = divmod(int(cell), GRID)
            one[down[row] : down[row + 1], across[column] : across[column + 1]] = colour
        painted.append(one)
    rows = engine.encode_prepared(np.stack(painted))
    return np.array([values_of(terms, row)[0, term] for row in rows])
