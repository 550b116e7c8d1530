"""Ranges of values in the order of the index: all numbers by size, then all texts by code points.

A range is everything between two cuts. A cut lies before or behind a value, so ranges of any operator
have one form, and cuts compare exactly: Python compares whole numbers with floats without rounding, and
so does SQLite. A whole number of more than 64 bits is no value of the index; its cut lies beside the
next float.
"""

from __future__ import annotations

from collections.abc import Iterable

from cir_infer.gallery.metadata.values import Scalar

__all__ = [
    "END",
    "EVERYTHING",
    "START",
    "TEXTS",
    "Cut",
    "Range",
    "after",
    "before",
    "behind_prefix",
    "condition",
    "united",
]

Cut = tuple[int, Scalar, int]
"""0 for a number, 1 for a text, 2 for the end; the value; 0 before it, 1 behind it."""
Range = tuple[Cut, Cut]

START: Cut = (0, float("-inf"), 0)
TEXTS: Cut = (1, "", 0)
END: Cut = (2, 0, 0)
EVERYTHING: Range = (START, END)
_INT64 = 1 << 63


def before(value: Scalar) -> Cut:
    """The cut before a value."""
    return _cut(value, 0)


def after(value: Scalar) -> Cut:
    """The cut behind a value; the same as before it where the index cannot hold it."""
    return _cut(value, 1)


def behind_prefix(prefix: str) -> Cut:
    """The cut behind everything that starts with a prefix."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return 1, prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1), 0
        prefix = prefix[:-1]
    return END


def united(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same values as ascending ranges that neither overlap nor touch."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return tuple(out)


def condition(bounds: Range) -> tuple[str, list[Scalar]]:
    """A range as SQL on the column `value`, and its parameters."""
    start, end = bounds
    texts: list[str] = []
    parameters: list[Scalar] = []
    if start != START:
        texts.append("value > ?" if start[2] else "value >= ?")
        parameters.append(start[1])
    if end != END:
        texts.append("value <= ?" if end[2] else "value < ?")
        parameters.append(end[1])
    return " AND ".join(texts) or "1", parameters


def _cut(value: Scalar, side: int) -> Cut:
    if isinstance(value, str):
        return 1, value, side
    if isinstance(value, float) or -_INT64 <= value < _INT64:
        return 0, value, side
    try:
        nearest = float(value)
    except OverflowError:
        nearest = float("inf") if value > 0 else float("-inf")
    if nearest == value:
        return 0, nearest, side
    return 0, nearest, int(nearest < value)
