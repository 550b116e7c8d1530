"""Filters on metadata: from an expression to a mask of rows.

An expression is a dictionary or a line of text (see `expressions`); both become the same small tree
(see `conditions`). Each match of a field is one look-up in the index of attributes, by parameterised
SQL; and, or and not join sets of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError, shown
from cir_infer.gallery.catalogue.catalogue import Catalogue
from cir_infer.gallery.catalogue.tables import Connection
from cir_infer.gallery.filters.conditions import (
    MAX_DEPTH,
    All,
    Budget,
    Filter,
    Match,
    Negation,
    all_of,
    any_of,
    comparison,
    is_list,
    negated,
    plain_operand,
    size_of,
)
from cir_infer.gallery.filters.expressions import parse_text
from cir_infer.gallery.filters.ranges import Cut, Range, condition
from cir_infer.gallery.metadata.values import plain_text
from cir_infer.processes.cache import BoundedCache

__all__ = ["CACHE_BYTES", "FilterCache", "Where", "parse", "sendable"]

Where = Mapping[str, Any] | str
"""What the public API takes as `where`."""

CACHE_BYTES = 64 << 20
_LOOKUP = 500  # values asked for in one statement; SQLite's oldest limit is 999
_FEW = 8  # ranges of one field that are looked up one by one
_SPARSE = 16  # sets of fewer than one row in so many are lists of rows, others are masks

_Rows = npt.NDArray[Any]
"""A set of rows: their numbers ascending as int64, or a mask of all as bool."""


def parse(where: Where) -> Filter:
    """Read an expression.

    Args:
        where: a dictionary: `{"category": "dress", "price": {"<": 50, ">=": 10}, "brand": ["a", "b"]}`,
            every entry of which must hold. A value is a scalar (equal; also NumPy's, a date or a
            time), None (absent or null), a list, tuple, set or array (one of these), or a
            dictionary of operators: "=", "!=", "<", "<=", ">", ">=", "in", "not in", "prefix",
            "null" (True or False). "$and" and "$or" take lists of dictionaries, "$not" takes one.
            Or text, see `expressions.parse_text`.

    Raises:
        UsageError: it is no such expression, or asks for more than `conditions` allows; the message
            quotes the part that is wrong.
    """
    if isinstance(where, str):
        return parse_text(plain_text(where))
    try:
        return _mapping(where, 0, Budget())
    except UsageError:
        raise
    except Exception as error:  # a stranger's dictionary or list may raise anything while it is read
        raise UsageError(
            f"where cannot be read: {type(error).__name__}: {shown(error, 200)}; expected plain dictionaries"
        ) from error


def _mapping(where: Any, depth: int, budget: Budget) -> Filter:
    if not isinstance(where, Mapping):
        raise UsageError(f"where is {shown(where, 80)}; expected a dictionary of fields or a line of text")
    if depth > MAX_DEPTH:
        raise UsageError(f"where is nested more than {MAX_DEPTH} deep")
    budget.take("groups", len(where) > 1)
    parts: list[Filter] = []
    for name, value in where.items():
        if not isinstance(name, str) or not name:
            raise _no_field(name)
        name = plain_text(name)
        if name in ("$and", "$or"):
            budget.take("groups")
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
                raise UsageError(f"where: {name} takes a list of dictionaries, found {shown(value, 80)}")
            inner = [_mapping(part, depth + 1, budget) for part in value]
            parts.append(all_of(inner) if name == "$and" else any_of(inner))
        elif name == "$not":
            budget.take("groups")
            parts.append(negated(_mapping(value, depth + 1, budget)))
        elif name.startswith("$"):
            raise _no_field(name)
        elif isinstance(value, Mapping):
            parts += [comparison(name, operator, operand, budget) for operator, operand in value.items()]
        elif is_list(value):
            parts.append(comparison(name, "in", value, budget))
        else:
            parts.append(comparison(name, "=", value, budget))
    return all_of(parts)


def _no_field(name: object) -> UsageError:
    return UsageError(
        f"where names the field {shown(name, 80)}; expected a field's name, $and, $or or $not "
        "(a line of text can quote any name)"
    )


def sendable(where: Where) -> str | dict[str, Any]:
    """The same filter in values that JSON has, for another process to read: dates as text, arrays as lists.

    Raises:
        UsageError: see `parse`.
    """
    if isinstance(where, str):
        return plain_text(where)
    parse(where)  # refuses what JSON would make something else of: the field 1 is not the field "1"
    return _sent(where)


def _sent(where: Mapping[str, Any]) -> dict[str, Any]:
    sent: dict[str, Any] = {}
    for name, value in where.items():
        if name in ("$and", "$or"):
            told: Any = [_sent(part) for part in value]
        elif name == "$not":
            told = _sent(value)
        elif isinstance(value, Mapping):
            told = {plain_text(operator): plain_operand(name, operand) for operator, operand in value.items()}
        else:
            told = plain_operand(name, value)
        sent[plain_text(name)] = told
    return sent


class KeyedRows(Protocol):
    """What a filter has to know of a snapshot."""

    @property
    def generation(self) -> int:
        """The commit it shows."""
        ...

    @property
    def next_key(self) -> int:
        """Every key in it is smaller."""
        ...

    def rows_of(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row of each key, -1 for those that are not in it."""
        ...

    @property
    def row_count(self) -> int:
        """How many rows it has, buried ones included."""
        ...


class _Answer(NamedTuple):
    generation: int
    end: int  # the answer covers the keys below
    keys: npt.NDArray[np.int64]  # ascending, those of that generation's rows


_NOTHING = np.empty(0, np.int64)


class FilterCache:
    """Answers of single matches, shared by all snapshots of a gallery and its threads.

    An item's metadata never changes under its key, so an answer for one generation needs only the
    newer keys to become that for a later one.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._answers: BoundedCache[Match, _Answer] = BoundedCache(CACHE_BYTES)

    def matches(self, tree: Filter, rows: KeyedRows) -> npt.NDArray[np.bool_]:
        """Which rows a filter matches, buried ones included, as bool (N,)."""
        with self._catalogue.reading() as connection:
            evaluation = _Evaluation(self._answers, connection, rows)
            evaluation.read_columns(tree)
            return _mask(evaluation.of(tree), rows.row_count)


class _Column(NamedTuple):
    """The rows of a field in the order of its values, and where in them the cuts of a filter lie."""

    rows: npt.NDArray[np.int64]
    places: dict[Cut, int]


class _Evaluation:
    """One filter over one snapshot."""

    def __init__(
        self, answers: BoundedCache[Match, _Answer], connection: Connection, rows: KeyedRows
    ) -> None:
        self._answers = answers
        self._connection = connection
        self._rows = rows
        self._fields: dict[str, int | None] = {}
        self._columns: dict[str, _Column] = {}

    def read_columns(self, tree: Filter) -> None:
        """Read the fields that a filter compares in many ways, each once instead of for each comparison."""
        ranges: dict[str, set[Range]] = {}
        for match in _matches(tree):
            if match.ranges and not self._is_known(match):
                ranges.setdefault(match.field, set()).update(match.ranges)
        for name, several in ranges.items():
            field = self._field(name) if len(several) > _FEW else None
            if field is not None:
                self._columns[name] = self._column(field, several)

    def _column(self, field: int, ranges: set[Range]) -> _Column:
        cuts = sorted({cut for bounds in ranges for cut in bounds})
        span = (0, self._rows.next_key)
        parts = [self._keys(field, *condition(bounds), span) for bounds in pairwise(cuts)]
        rows = self._rows.rows_of(np.concatenate([_NOTHING, *parts]))
        here = rows >= 0
        before = np.concatenate([[0], np.cumsum(here)])
        ends = before[np.cumsum([0, *map(len, parts)])].tolist()
        return _Column(rows[here], dict(zip(cuts, ends, strict=True)))

    def _is_known(self, match: Match) -> bool:
        known = self._answers.get(match)
        return known is not None and known.generation == self._rows.generation

    def of(self, tree: Filter) -> _Rows:
        """The rows that a tree matches."""
        count = self._rows.row_count
        if isinstance(tree, Match):
            return self._match(tree)
        if isinstance(tree, Negation):
            return ~_mask(self.of(tree.part), count)
        if isinstance(tree, All):
            return self._all(tree.parts)
        out = np.zeros(count, np.bool_)
        listed: list[npt.NDArray[np.int64]] = []
        for part in tree.parts:
            found = self.of(part)
            if found.dtype == np.bool_:
                out |= found
            else:
                listed.append(found)
        if len(listed) == len(tree.parts) and sum(map(len, listed)) < count // _SPARSE:
            return np.unique(np.concatenate([_NOTHING, *listed]))
        for found in listed:
            out[found] = True
        return out

    def _all(self, parts: Sequence[Filter]) -> _Rows:
        out: _Rows = np.ones(self._rows.row_count, np.bool_)
        for part in parts:
            # What is denied is taken away where it is, without a mask of everything else.
            denied = isinstance(part, Negation)
            found = self.of(part.part if isinstance(part, Negation) else part)
            if out.dtype == np.bool_ and found.dtype != np.bool_ and not denied:
                out = found[out[found]]
            elif out.dtype == np.bool_ and found.dtype != np.bool_:
                out[found] = False
            elif out.dtype == np.bool_:
                out &= ~found if denied else found
            elif found.dtype == np.bool_:
                out = out[found[out] != denied]
            else:
                out = out[np.isin(out, found, assume_unique=True, invert=denied)]
            if out.dtype != np.bool_ and not len(out):
                break
        return out

    def _match(self, match: Match) -> _Rows:
        field = self._field(match.field)
        if field is None or not (match.values or match.ranges):
            return _NOTHING
        column = self._columns.get(match.field)
        if column is not None and match.ranges and not self._is_known(match):
            return self._picked(match, column)
        generation = self._rows.generation
        newest = self._answers.get(match)
        known = newest if newest is not None and newest.generation <= generation else _Answer(0, 0, _NOTHING)
        keys = known.keys
        if known.end < self._rows.next_key:
            keys = np.concatenate([keys, self._look_up(match, field, known.end)])
        places = self._rows.rows_of(keys)
        here = places >= 0
        if newest is None or newest.generation < generation:
            kept = keys if here.all() else keys[here]
            answer = _Answer(generation, self._rows.next_key, kept)
            self._answers.put(match, answer, kept.nbytes + size_of(match))
        rows = places[here]
        return rows if len(rows) < self._rows.row_count // _SPARSE else _mask(rows, self._rows.row_count)

    def _picked(self, match: Match, column: _Column) -> _Rows:
        pieces = [column.rows[column.places[start] : column.places[end]] for start, end in match.ranges]
        found = self._match(Match(match.field, match.values))
        if found.dtype != np.bool_ and sum(map(len, pieces)) < self._rows.row_count // _SPARSE:
            return np.unique(np.concatenate([found, *pieces]))
        out = _mask(found, self._rows.row_count)
        for piece in pieces:
            out[piece] = True
        return out

    def _field(self, name: str) -> int | None:
        if name not in self._fields:
            found = self._connection.execute("SELECT field FROM fields WHERE name = ?", (name,)).fetchone()
            self._fields[name] = None if found is None else found[0]
        return self._fields[name]

    def _look_up(self, match: Match, field: int, start: int) -> npt.NDArray[np.int64]:
        """The keys of a match from `start` on, ascending; an item with a list may match more than once."""
        span = (start, self._rows.next_key)
        parts = [self._keys(field, *condition(bounds), span) for bounds in match.ranges]
        if len(match.values) > max(self._rows.row_count, 2 * _LOOKUP):
            parts.append(self._scanned(match, field, span))
        else:
            values = iter(sorted(match.values, key=lambda value: (isinstance(value, str), value)))
            while chunk := list(islice(values, _LOOKUP)):
                marks = ",".join("?" * len(chunk))
                parts.append(self._keys(field, f"value IN ({marks})", chunk, span))
        return np.unique(np.concatenate([_NOTHING, *parts]))

    def _keys(
        self, field: int, condition: str, parameters: Sequence[Any], span: tuple[int, int]
    ) -> npt.NDArray[np.int64]:
        found = self._connection.execute(
            f"SELECT key FROM attributes WHERE field = ? AND {condition} AND key >= ? AND key < ?",
            (field, *parameters, *span),
        )
        return np.fromiter((key for (key,) in found), np.int64)

    def _scanned(self, match: Match, field: int, span: tuple[int, int]) -> npt.NDArray[np.int64]:
        """The keys of many values, by reading the whole field."""

        def keys() -> Iterator[int]:
            for value, key in self._connection.execute(
                "SELECT value, key FROM attributes WHERE field = ? AND key >= ? AND key < ?", (field, *span)
            ):
                if value in match.values:
                    yield key

        return np.fromiter(keys(), np.int64)


def _matches(tree: Filter) -> Iterator[Match]:
    if isinstance(tree, Match):
        yield tree
    else:
        for part in (tree.part,) if isinstance(tree, Negation) else tree.parts:
            yield from _matches(part)


def _mask(rows: _Rows, count: int) -> npt.NDArray[np.bool_]:
    if rows.dtype == np.bool_:
        return rows
    out = np.zeros(count, np.bool_)
    out[rows] = True
    return out
