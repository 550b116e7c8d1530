"""What a filter asks of metadata, as a small tree: matches of one field, and, or and not.

A field that an item lacks (or that is null) satisfies no comparison, and `not` turns that around: there are
two truth values, no third. Comparisons of one field that are joined by `or` are one match, however many they
are, so that they are one look-up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_infer.errors import UsageError, shown
from cir_infer.gallery.filters.ranges import (
    END,
    EVERYTHING,
    START,
    TEXTS,
    Range,
    after,
    before,
    behind_prefix,
    united,
)
from cir_infer.gallery.metadata.values import (
    BEYOND,
    Scalar,
    UnfitError,
    is_missing,
    plain_text,
    scalar,
    storable,
)
from cir_infer.inputs.arrays import array_of

__all__ = [
    "MAX_COMPARISONS",
    "MAX_DEPTH",
    "MAX_GROUPS",
    "MAX_VALUES",
    "All",
    "AnyOf",
    "Budget",
    "Filter",
    "Match",
    "Negation",
    "all_of",
    "any_of",
    "comparison",
    "is_list",
    "negated",
    "plain_operand",
    "size_of",
]

MAX_DEPTH = 64
MAX_COMPARISONS = 10_000
MAX_GROUPS = 2_000
MAX_VALUES = 1_000_000


@dataclass(frozen=True)
class Match:
    """A value of the field is one of `values`, or lies in one of `ranges` (which ascend, apart)."""

    field: str
    values: frozenset[Scalar] = frozenset()
    ranges: tuple[Range, ...] = ()


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


Filter = Match | Negation | All | AnyOf


class Budget:
    """How much one expression may still ask for; what it asks for beyond that is an error."""

    def __init__(self) -> None:
        self._left = {"comparisons": MAX_COMPARISONS, "groups": MAX_GROUPS, "values": MAX_VALUES}
        self._limits = dict(self._left)

    def take(self, what: str, count: int = 1) -> None:
        """Count `comparisons`, `groups` (and, or, not) or `values`.

        Raises:
            UsageError: they are too many.
        """
        self._left[what] -= count
        if self._left[what] < 0:
            remedy = "; compare one field with many values by in" if what == "comparisons" else ""
            raise UsageError(f"where has more than {self._limits[what]:,} {what}{remedy}")


def any_of(parts: Iterable[Filter]) -> Filter:
    """`or`: matches of the same field become one."""
    kept: dict[Any, Filter] = {}
    matches: dict[str, list[Match]] = {}
    for part in parts:
        if isinstance(part, Match):
            matches.setdefault(part.field, []).append(part)
            kept.setdefault(("field", part.field), part)
        else:
            kept.setdefault(part, part)
    for field, same in matches.items():
        if len(same) > 1:
            values = frozenset[Scalar]().union(*(match.values for match in same))
            ranges = united(part for match in same for part in match.ranges)
            kept["field", field] = Match(field, values, ranges)
    return _joined(AnyOf, kept.values())


def all_of(parts: Iterable[Filter]) -> Filter:
    """`and`: denied matches of the same field become one, and a range within another goes without that."""
    kept: list[Filter] = []
    denied: list[Match] = []
    for part in parts:
        if isinstance(part, Negation) and isinstance(part.part, Match):
            denied.append(part.part)
        else:
            kept.append(part)
    if denied:
        fused = any_of(denied)
        kept += map(Negation, fused.parts if isinstance(fused, AnyOf) else (fused,))
    return _joined(All, dict.fromkeys(_without_wider(kept)))


def negated(part: Filter) -> Filter:
    """`not`."""
    return part.part if isinstance(part, Negation) else Negation(part)


def _joined(kind: type[All] | type[AnyOf], parts: Iterable[Filter]) -> Filter:
    listed = tuple(parts)
    return listed[0] if len(listed) == 1 else kind(listed)


def _without_wider(parts: Sequence[Filter]) -> list[Filter]:
    """Parts without the ranges of a field around another one: a value in the inner is in the outer."""
    ranges: dict[str, list[Range]] = {}
    for part in parts:
        if isinstance(part, Match) and not part.values and len(part.ranges) == 1:
            ranges.setdefault(part.field, []).append(part.ranges[0])
    narrow = {field: _narrowest(several) for field, several in ranges.items() if len(several) > 1}
    return [
        part
        for part in parts
        if not isinstance(part, Match)
        or part.field not in narrow
        or part.values
        or len(part.ranges) != 1
        or part.ranges[0] in narrow[part.field]
    ]


def _narrowest(ranges: Iterable[Range]) -> set[Range]:
    """Those of some ranges that hold no other one."""
    found: set[Range] = set()
    least_end: Any = None
    # From the last start to the first, short ones first: a range holds one of those before it if it does not
    # end earlier.
    by_end = sorted(set(ranges), key=lambda bounds: bounds[1])
    for start, end in sorted(by_end, key=lambda bounds: bounds[0], reverse=True):
        if least_end is None or end < least_end:
            found.add((start, end))
            least_end = end
    return found


def comparison(field: Any, operator: Any, value: Any, budget: Budget) -> Filter:
    """One operator applied to one field.

    Args:
        field: its name.
        operator: as in `parse`.
        value: its right-hand side.
        budget: of the whole expression; counted down.

    Raises:
        UsageError: no such operator, or a value that it cannot take.
    """
    budget.take("comparisons")
    field = _checked_text(field, "a field's name")
    operator = plain_text(operator) if isinstance(operator, str) else operator
    if operator == "null":
        if not isinstance(value, (bool, np.bool_)):
            raise UsageError(
                f'where: {shown(field, 60)}: "null" takes true or false, found {shown(value, 80)}'
            )
        return Negation(_exists(field)) if value else _exists(field)
    if operator in ("in", "not in"):
        one_of = _one_of(field, operator, value, budget)
        return one_of if operator == "in" else negated(one_of)
    if operator in ("=", "!="):
        equal = Negation(_exists(field)) if value is None else _equal(field, [_scalar(field, value)])
        return equal if operator == "=" else negated(equal)
    if operator == "prefix":
        prefix = value if isinstance(value, str) else _scalar(field, value)
        if not isinstance(prefix, str):
            raise UsageError(f'where: {shown(field, 60)}: "prefix" takes text, found {shown(value, 80)}')
        prefix = _checked_text(prefix, "a prefix")
        return Match(field, ranges=((before(prefix), behind_prefix(prefix)),))
    if operator in ("<", "<=", ">", ">="):
        return _compared(field, operator, _scalar(field, value))
    raise UsageError(
        f"where: {shown(field, 60)}: unknown operator {shown(operator, 40)}; "
        "expected =, !=, <, <=, >, >=, in, not in, prefix or null"
    )


def plain_operand(field: str, value: Any) -> Any:
    """The right-hand side of a comparison that `comparison` takes, in values that JSON has."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if is_list(value):
        return [plain_operand(field, element) for element in _elements(value)]
    plain = _scalar(field, value)
    if isinstance(plain, str) or abs(plain) <= sys.float_info.max:
        return plain
    return BEYOND if plain > 0 else -BEYOND


def size_of(tree: Filter) -> int:
    """About how many bytes a filter takes."""
    if isinstance(tree, Match):
        values = sum(map(sys.getsizeof, tree.values)) + 64 * len(tree.values)
        bounds = sum(sys.getsizeof(bound[1]) + 100 for pair in tree.ranges for bound in pair)
        return 400 + sys.getsizeof(tree.field) + values + bounds
    if isinstance(tree, Negation):
        return 100 + size_of(tree.part)
    return 150 + sum(map(size_of, tree.parts))


def _exists(field: str) -> Match:
    return Match(field, ranges=(EVERYTHING,))


def _one_of(field: str, operator: str, value: Any, budget: Budget) -> Filter:
    if isinstance(value, np.generic) or not hasattr(type(value), "__array__"):
        fits = isinstance(value, (Sequence, Set)) and not isinstance(
            value, (str, bytes, bytearray, memoryview)
        )
    else:
        value = array_of(value)
        fits = value.ndim == 1
    if not fits:
        raise UsageError(
            f'where: {shown(field, 60)}: "{operator}" takes a list of values, found {shown(value, 80)}'
        )
    budget.take("values", len(value))
    listed = _elements(value)
    if _is_plain(listed):
        return Match(field, frozenset(listed))
    scalars = [None if element is None else _scalar(field, element) for element in listed]
    known = _equal(field, (element for element in scalars if element is not None))
    return any_of([known, Negation(_exists(field))]) if None in scalars else known


def _elements(values: Any) -> list[Any]:
    """What a list holds: a plain array's values at once; of what is masked each says that it is missing."""
    if hasattr(type(values), "__array__"):
        values = array_of(values)
    return values.tolist() if type(values) is np.ndarray and values.dtype.kind in "biuU" else list(values)


def _is_plain(values: list[Any]) -> bool:
    """Whether all are texts, or all whole numbers of 64 bits, that need no closer look one by one."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return bool(min(values) >= -(1 << 63) and max(values) < 1 << 63)
    return kinds == {str} and all(map(storable, values))


def _equal(field: str, values: Iterable[Scalar]) -> Match:
    """What equals one of some values; numbers that nothing stored can be are left out."""
    kept = set()
    for value in values:
        start, end = before(value), after(value)
        if start != end:
            kept.add(start[1])
    return Match(field, frozenset(kept))


def _compared(field: str, operator: str, value: Scalar) -> Match:
    least, most = (TEXTS, END) if isinstance(value, str) else (START, TEXTS)
    if operator == "<":
        most = before(value)
    elif operator == "<=":
        most = after(value)
    elif operator == ">":
        least = after(value)
    else:
        least = before(value)
    return Match(field, ranges=((least, most),) if least < most else ())


def _scalar(field: str, value: Any) -> Scalar:
    if hasattr(type(value), "__array__") and np.ndim(value) == 0:
        value = array_of(value)[()] if not isinstance(value, np.generic) else value
    if value is None or is_missing(value):
        raise UsageError(
            f"where: {shown(field, 60)} is compared with {shown(value, 40)}, which compares with nothing; "
            "ask whether it is null"
        )
    try:
        plain = scalar(value)
    except UnfitError as error:
        raise UsageError(f"where: the value compared with {shown(field, 60)} {error}") from None
    if isinstance(plain, bool):
        return int(plain)
    assert plain is not None
    return plain


def _checked_text(text: str, what: str) -> str:
    text = plain_text(text)
    if not storable(text):
        raise UsageError(f"where: {what} is not valid Unicode: {shown(text, 80)}")
    return text


def is_list(value: Any) -> bool:
    """Whether a dictionary's entry means `in`: a list, tuple, set, array or another sequence of values."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping, np.generic)):
        return False
    return isinstance(value, (Sequence, Set)) or (hasattr(type(value), "__array__") and np.ndim(value) > 0)
