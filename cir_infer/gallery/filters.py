"""Filters on metadata: from an expression to a mask of rows.

An expression is a dictionary or a line of text (see `expressions`); both become the same small tree
(see `conditions`). Each comparison is one parameterised SQL query over the index of attributes; and, or
and not are bit operations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError, shown
from cir_infer.gallery.catalogue import Catalogue
from cir_infer.gallery.conditions import (
    MAX_DEPTH,
    MAX_TERMS,
    All,
    AnyOf,
    Filter,
    Is,
    Negation,
    comparison,
)
from cir_infer.gallery.expressions import parse_text
from cir_infer.gallery.metadata import Scalar

__all__ = ["FilterCache", "Where", "parse"]

Where = Mapping[str, Any] | str
"""What the public API takes as `where`."""

_CACHE_BYTES = 64 << 20


def parse(where: Where) -> Filter:
    """Read an expression.

    Args:
        where: a dictionary: `{"category": "dress", "price": {"<": 50, ">=": 10}, "brand": ["a", "b"]}`,
            every entry of which must hold. A value is a scalar (equal), None (absent or null), a
            list, tuple or set (one of these), or a dictionary of operators: "=", "!=", "<", "<=",
            ">", ">=", "in", "not in", "prefix", "null" (True or False). "$and" and "$or" take
            lists of dictionaries, "$not" takes one. Or text, see `expressions.parse_text`.

    Raises:
        UsageError: it is no such expression; the message quotes the part that is wrong.
    """
    if isinstance(where, str):
        return parse_text(where)
    try:
        return _mapping(where, 0, [MAX_TERMS])
    except RecursionError:  # even to show a value takes some depth
        raise UsageError("where holds a value that is nested too deep") from None


def _mapping(where: Any, depth: int, budget: list[int]) -> Filter:
    if not isinstance(where, Mapping):
        raise UsageError(f"where is {shown(where, 80)}; expected a dictionary of fields or a line of text")
    if depth > MAX_DEPTH:
        raise UsageError(f"where is nested more than {MAX_DEPTH} deep")
    parts: list[Filter] = []
    for name, value in where.items():
        if name in ("$and", "$or"):
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
                raise UsageError(f"where: {name} takes a list of dictionaries, found {shown(value, 80)}")
            inner = tuple(_mapping(part, depth + 1, budget) for part in value)
            parts.append(All(inner) if name == "$and" else AnyOf(inner))
        elif name == "$not":
            parts.append(Negation(_mapping(value, depth + 1, budget)))
        elif not isinstance(name, str) or not name or name.startswith("$"):
            raise UsageError(
                f"where names the field {shown(name, 80)}; expected a field's name, $and, $or or $not"
            )
        elif isinstance(value, Mapping):
            parts += [comparison(name, operator, operand, budget) for operator, operand in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts.append(comparison(name, "in", value, budget))
        else:
            parts.append(comparison(name, "=", value, budget))
    return parts[0] if len(parts) == 1 else All(tuple(parts))


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


class FilterCache:
    """Answers of single comparisons, shared by all snapshots of a gallery and its threads.

    An item's metadata never changes under its key, so an answer for one generation needs only the
    newer keys to become that for a later one.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._answers: OrderedDict[Is, _Answer] = OrderedDict()
        self._lock = Lock()

    def matches(self, tree: Filter, rows: KeyedRows) -> npt.NDArray[np.bool_]:
        """Which rows a filter matches, buried ones included, as bool (N,)."""
        if isinstance(tree, Is):
            return self._leaf(tree, rows)
        if isinstance(tree, Negation):
            return ~self.matches(tree.part, rows)
        out = np.full(rows.row_count, isinstance(tree, All), np.bool_)
        for part in tree.parts:
            if isinstance(tree, All):
                out &= self.matches(part, rows)
            else:
                out |= self.matches(part, rows)
        return out

    def _leaf(self, leaf: Is, rows: KeyedRows) -> npt.NDArray[np.bool_]:
        with self._lock:
            known = self._answers.get(leaf)
            if known is not None:
                self._answers.move_to_end(leaf)
        if known is None or known.generation > rows.generation:
            known = _Answer(0, 0, np.empty(0, np.int64))
        keys = known.keys
        if known.end < rows.next_key:
            keys = np.concatenate([keys, self._look_up(leaf, known.end, rows.next_key)])
        places = rows.rows_of(keys)
        out = np.zeros(rows.row_count, np.bool_)
        out[places[places >= 0]] = True
        if known.generation < rows.generation:
            self._remember(leaf, _Answer(rows.generation, rows.next_key, keys[places >= 0]))
        return out

    def _remember(self, leaf: Is, answer: _Answer) -> None:
        with self._lock:
            current = self._answers.get(leaf)
            if current is None or current.generation < answer.generation:
                self._answers[leaf] = answer
            size = sum(entry.keys.nbytes for entry in self._answers.values())
            while size > _CACHE_BYTES and len(self._answers) > 1:
                size -= self._answers.popitem(last=False)[1].keys.nbytes

    def _look_up(self, leaf: Is, start: int, end: int) -> npt.NDArray[np.int64]:
        condition, parameters = _condition(leaf)
        with self._catalogue.reading() as connection:
            field = connection.execute("SELECT field FROM fields WHERE name = ?", (leaf.field,)).fetchone()
            if field is None:
                return np.empty(0, np.int64)
            found = connection.execute(
                f"SELECT key FROM attributes WHERE field = ? AND {condition} AND key >= ? AND key < ?",
                (field[0], *parameters, start, end),
            )
            # An item with a list may match more than once.
            return np.unique(np.fromiter((key for (key,) in found), np.int64))


def _condition(leaf: Is) -> tuple[str, tuple[Scalar, ...]]:
    # SQLite orders numbers before text, so a range needs a bound on its open side to stay in its type.
    value = leaf.value
    if leaf.operator == "exists" or value is None:
        return "1", ()
    if leaf.operator == "=":
        return "value = ?", (value,)
    if leaf.operator == "prefix":
        assert isinstance(value, str)
        bound = _after_prefix(value)
        return ("value >= ? AND value < ?", (value, bound)) if bound else ("value >= ?", (value,))
    if leaf.operator in ("<", "<="):
        return (f"value {leaf.operator} ?" + (" AND value >= ''" if isinstance(value, str) else ""), (value,))
    return (f"value {leaf.operator} ?" + ("" if isinstance(value, str) else " AND value < ''"), (value,))


def _after_prefix(prefix: str) -> str:
    """The smallest text behind everything that starts with the prefix; empty where there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return ""
