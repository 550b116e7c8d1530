"""Items whose rows are (almost) the same: an exact scan of a gallery against itself, in blocks.

The scan compares every row with every other, so it costs N^2 D operations; memory is bounded by the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError, shown
from cir_infer.gallery.rows.vectors import rows_at_once
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.inputs.arguments import checked_flag, checked_real

__all__ = ["Duplicates", "duplicates_of"]

_ROWS = 1024
_COLUMNS = 8192
_ROUNDING = 5e-6
"""Half of the last place of a cosine with five decimals, to which similarities are compared."""

Rows = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]


class Duplicates(NamedTuple):
    """Items that are alike, each to at least one other of them.

    Attributes:
        ids: two or more, in the order in which they were added.
        similarity: the smallest cosine between the first and another of them.
    """

    ids: list[str]
    similarity: float


def duplicates_of(snapshot: Snapshot, threshold: float, *, progress: bool = False) -> list[Duplicates]:
    """Groups of live items whose rows have a cosine of at least `threshold`, to five decimals.

    Args:
        snapshot: the items.
        threshold: above 0, at most 1.
        progress: say how far it is: a bar on a terminal, elsewhere log lines.

    Returns:
        Groups in the order of their first items. Two items are in one group if a chain of pairs above the
        threshold leads from one to the other.

    Raises:
        UsageError: the threshold is out of range.
    """
    expected = "a cosine, above 0 and at most 1"
    if not 0 < checked_real("threshold", threshold, expected) <= 1:
        raise UsageError(f"threshold is {shown(threshold, 40)}; expected {expected}")
    checked_flag("progress", progress)
    from cir_infer.console.progress import progress_bar

    live = snapshot.live_rows()
    tiles = list(_tiles(len(live), snapshot.row_shape))
    parents = np.arange(len(live))
    rows: Matrix = np.empty((0, snapshot.tokens_per_item * snapshot.dimension), np.float32)
    first = -1
    for down, across in progress_bar(tiles, len(tiles), "comparing", "block", progress):
        if down.start != first:
            rows, first = _directions(snapshot, live[down]), down.start
        alike = rows @ _directions(snapshot, live[across]).T >= threshold - _ROUNDING
        _join(alike, down.start, across.start, parents)
    return list(_groups(snapshot, live, parents))


def _tiles(count: int, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Row numbers to be compared with row numbers; every pair of rows is in one of them."""
    rows, columns = rows_at_once(shape, _ROWS), rows_at_once(shape, _COLUMNS)
    for down in range(0, count, rows):
        for across in range(down, count, columns):
            yield slice(down, min(down + rows, count)), slice(across, min(across + columns, count))


def _directions(snapshot: Snapshot, rows: Rows) -> Matrix:
    """Rows of length one, float32 (n, D)."""
    # Several vectors of an item count as one long one: their places mean something.
    taken = np.asarray(snapshot.rows.take(rows), np.float32).reshape(len(rows), -1)
    # In two steps, so that squares of very large or small numbers stay finite.
    taken = taken / np.abs(taken).max(axis=1, keepdims=True)
    directions: Matrix = taken / np.linalg.norm(taken, axis=1, keepdims=True)
    return directions


def _join(alike: npt.NDArray[np.bool_], down: int, across: int, parents: Rows) -> None:
    """Put the rows of each pair into one set; the least row of a set is its root."""
    for number in np.flatnonzero(alike.any(axis=1)):
        others = np.flatnonzero(alike[number]) + across
        roots = np.unique(_roots(np.append(others, down + number), parents))
        parents[roots] = roots[0]


def _roots(rows: Rows, parents: Rows) -> Rows:
    roots = parents[rows]
    while (higher := parents[roots]).tolist() != roots.tolist():
        roots = higher
    parents[rows] = roots
    return roots


def _groups(snapshot: Snapshot, live: Rows, parents: Rows) -> Iterator[Duplicates]:
    roots = _roots(np.arange(len(live)), parents)
    order = np.argsort(roots, kind="stable")
    step = rows_at_once(snapshot.row_shape, _COLUMNS)
    starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
    for start, end in zip(starts, np.append(starts, len(order))[1:], strict=True):
        if end - start < 2:
            continue
        members = live[order[start:end]]
        first = _directions(snapshot, members[:1])[0]
        least = min(
            float((_directions(snapshot, members[at : at + step]) @ first).min())
            for at in range(0, len(members), step)
        )
        yield Duplicates(snapshot.ids(members), round(min(least, 1.0), 5))
