"""Queries whose target shows the change at a known place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cir_eval.datasets.scenes.reader import Split

__all__ = ["SIDE", "Case", "cases_of", "inside"]

SIDE = 3
"""Cells a side of a scene."""


@dataclass(frozen=True)
class Case:
    """One query.

    Attributes:
        reference: its picture.
        target: that of the right answer.
        text: the modifier.
        kind: what is modified.
        cells: of the target that hold what the reference does not, bool (3, 3).
    """

    reference: Path
    target: Path
    text: str
    kind: str
    cells: npt.NDArray[np.bool_]


def cases_of(split: Split, view: str, count: int) -> list[Case]:
    """The first `count` queries whose target holds something new; those that remove an object have none."""
    found: list[Case] = []
    for query in split.queries:
        before, after = (split.scenes[split.rows[one]] for one in (query.reference, query.target))
        new = [b is not None and a != b for a, b in zip(before.cells, after.cells, strict=True)]
        if any(new):
            reference, target = (split.image_path(one, view) for one in (query.reference, query.target))
            found.append(Case(reference, target, query.text, query.kind, np.reshape(new, (SIDE, SIDE))))
        if len(found) == count:
            break
    return found


def inside(heat: npt.NDArray[np.float64], cells: npt.NDArray[np.bool_]) -> bool:
    """Whether the largest value of a map over the whole picture lies in one of the cells of the scene."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    return bool(
        cells[
            int((row + 0.5) * SIDE / heat.shape[0]),
            int((column + 0.5) * SIDE / heat.shape[1]),
        ]
    )
