"""What a filter asks of metadata, as a small tree: comparisons of one field, and, or and not.

A field that an item lacks (or that is null) satisfies no comparison, and `not` turns that around: there are
two truth values, no third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_infer.errors import UsageError, shown
from cir_infer.gallery.metadata import Scalar

__all__ = ["MAX_DEPTH", "MAX_TERMS", "All", "AnyOf", "Filter", "Is", "Negation", "comparison"]

MAX_DEPTH = 64
MAX_TERMS = 10_000


@dataclass(frozen=True)
class Is:
    """One comparison of a field: operator "=", "<", "<=", ">", ">=", "prefix" or "exists"."""

    field: str
    operator: str
    value: Scalar | None = None


@dataclass(frozen=True)
class Negation:
    """Everything that the part does not match."""

    part: Filter


@dataclass(frozen=True)
class All:
    """What every part matches; everything where there is none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf:
    """What at least one part matches; nothing where there is none."""

    parts: tuple[Filter, ...]


Filter = Is | Negation | All | AnyOf


def comparison(field: str, operator: Any, value: Any, budget: list[int]) -> Filter:
    """One operator applied to one field, as a tree of `Is`.

    Args:
        field: its name.
        operator: as in `parse`.
        value: its right-hand side.
        budget: one number, how many more comparisons this expression may have; counted down.

    Raises:
        UsageError: no such operator, or a value that it cannot take.
    """
    budget[0] -= 1
    if budget[0] < 0:
        raise UsageError(f"where has more than {MAX_TERMS:,} comparisons")
    _checked_text(field, "a field's name")
    if operator == "null":
        if not isinstance(value, bool):
            raise UsageError(f'where: {field}: "null" takes true or false, found {shown(value, 80)}')
        return Negation(Is(field, "exists")) if value else Is(field, "exists")
    if operator in ("in", "not in"):
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise UsageError(f'where: {field}: "{operator}" takes a list of values, found {shown(value, 80)}')
        # Sets have no order of their own; a fixed one lets equal expressions share a cached answer.
        values = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        one_of = AnyOf(tuple(comparison(field, "=", element, budget) for element in values))
        return one_of if operator == "in" else Negation(one_of)
    if value is None and operator in ("=", "!="):
        return Negation(Is(field, "exists")) if operator == "=" else Is(field, "exists")
    if operator == "!=":
        return Negation(Is(field, "=", _scalar(field, value)))
    if operator == "prefix":
        if not isinstance(value, str):
            raise UsageError(f'where: {field}: "prefix" takes text, found {shown(value, 80)}')
        return Is(field, "prefix", _checked_text(value, "a prefix"))
    if operator in ("=", "<", "<=", ">", ">="):
        return Is(field, operator, _scalar(field, value))
    raise UsageError(
        f"where: {field}: unknown operator {shown(operator, 40)}; "
        "expected =, !=, <, <=, >, >=, in, not in, prefix or null"
    )


def _scalar(field: str, value: Any) -> Scalar:
    if isinstance(value, str):
        return _checked_text(value, f"the value of {field}")
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        number = int(value)
        # A number that no stored integer can equal still compares rightly as a float.
        return number if -(1 << 63) <= number < 1 << 63 else float(max(min(number, 10**300), -(10**300)))
    if isinstance(value, (float, np.floating)) and float(value) == float(value):
        return float(value)
    raise UsageError(
        f"where: {field} is compared with {shown(value, 80)}; expected text, a number, true, false or null"
    )


def _checked_text(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"where: {what} is not valid Unicode: {shown(text, 80)}") from None
    return text
