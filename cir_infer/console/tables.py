"""Text tables for terminals."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

from cir_infer.console.printing import printable

__all__ = ["format_table"]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Columns under a header and a rule; a column whose cells are all empty is left out.

    Args:
        header: the columns' titles.
        rows: cells, one a column; what a terminal would obey in them is escaped, so a row is one line.
        right: the columns that are flush right (numbers).
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    keep = [column for column in range(len(header)) if any(row[column] for row in rows) or not rows]
    lines = [list(header), *rows]
    widths = {column: max(_width(line[column]) for line in lines) for column in keep}
    text = [
        "  ".join(_fit(line[column], widths[column], column in right) for column in keep) for line in lines
    ]
    text.insert(1, "  ".join("-" * widths[column] for column in keep))
    return "\n".join(line.rstrip() for line in text)


def _fit(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
