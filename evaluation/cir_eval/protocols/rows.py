"""Small helpers that the protocols share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cir_eval.protocols.contract import RowNumbers
from cir_infer.errors import DatasetError, shown

__all__ = ["row_of", "rows_by_label", "to_rows"]


def to_rows(numbers: Sequence[int]) -> RowNumbers:
    """Row numbers as an array."""
    return np.asarray(numbers, np.int64).reshape(-1)


def rows_by_label(labels: Sequence[str]) -> dict[str, RowNumbers]:
    """All rows that carry a label, by label; one array a label, to be shared by its queries."""
    found: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        found.setdefault(label, []).append(row)
    return {label: to_rows(rows) for label, rows in found.items()}


def row_of(rows: Mapping[str, int], name: str, where: str) -> int:
    """The row of an image that a query names.

    Raises:
        DatasetError: the gallery does not hold it.
    """
    row = rows.get(name)
    if row is None:
        raise DatasetError(
            f"{where} names the image {shown(name)}, which is not in its split; download it again"
        )
    return row
