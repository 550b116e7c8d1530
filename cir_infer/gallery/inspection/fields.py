"""What metadata a gallery has: the fields that filters know, their types, ranges and commonest values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cir_infer.gallery.metadata.values import Scalar
from cir_infer.gallery.snapshot import Snapshot

__all__ = ["Field", "fields_of"]

_BLOCK = 8192
_VALUES = 1000
"""Distinct values of a field that are told apart."""
_LONGEST = 120
"""Characters of a text that is kept as an example."""
_EXAMPLES = 5


@dataclass
class Field:
    """One field of the metadata, by the name that filters use ("size.height" for nested objects).

    Attributes:
        name: the field's name.
        items: how many items have a value in it.
        types: how many values there are of each type: "text", "integer", "decimal", "boolean".
        least: the smallest number (the smallest text where there are no numbers), None for neither.
        greatest: the largest.
        distinct: how many different values there are, None for more than 1,000 or where texts are long.
        examples: the commonest values that were met, at most five; long texts are cut.
    """

    name: str
    items: int = 0
    types: dict[str, int] = field(default_factory=dict)
    least: Scalar | None = None
    greatest: Scalar | None = None
    distinct: int | None = 0
    examples: list[Scalar] = field(default_factory=list)


class _Tally:
    """Values of one field, in bounded memory."""

    def __init__(self) -> None:
        self.items = 0
        self.types: Counter[str] = Counter()
        self.numbers: list[int | float] = []  # the smallest and the largest
        self.texts: list[str] = []
        self.values: Counter[Scalar] = Counter()
        self.all_values = True

    def add(self, value: Scalar) -> None:
        self.types[_type(value)] += 1
        if isinstance(value, str):
            self.texts = [min(self.texts[0], value), max(self.texts[1], value)] if self.texts else [value] * 2
            if len(value) > _LONGEST:
                self.all_values = False
                value = value[:_LONGEST] + "..."
        elif not isinstance(value, bool):
            extremes = self.numbers
            self.numbers = [min(extremes[0], value), max(extremes[1], value)] if extremes else [value] * 2
        # True and 1 are one value to a dictionary, as they are to a filter.
        if value in self.values or len(self.values) < _VALUES:
            self.values[value] += 1
        else:
            self.all_values = False

    def field(self, name: str) -> Field:
        extremes: Sequence[Scalar] = self.numbers or [text[:_LONGEST] for text in self.texts]
        return Field(
            name,
            self.items,
            dict(sorted(self.types.items())),
            extremes[0] if extremes else None,
            extremes[1] if extremes else None,
            len(self.values) if self.all_values else None,
            [value for value, _ in self.values.most_common(_EXAMPLES)],
        )


def fields_of(snapshot: Snapshot) -> list[Field]:
    """The fields of the live items of a snapshot, in the order of their names.

    Raises:
        GalleryError: the catalogue is damaged.
    """
    rows = snapshot.live_rows()
    tallies: dict[str, _Tally] = {}
    for start in range(0, len(rows), _BLOCK):
        for metadata in snapshot.metadata(rows[start : start + _BLOCK]):
            met = set()
            for name, value in _values(metadata, ""):
                tally = tallies.setdefault(name, _Tally())
                tally.add(value)
                met.add(name)
            for name in met:
                tallies[name].items += 1
    return [tallies[name].field(name) for name in sorted(tallies)]


def _values(value: Any, name: str) -> Iterator[tuple[str, Scalar]]:
    """(field, value) as filters see them, but with truth values as such."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, name)
    elif value is not None:
        yield name, value


def _type(value: Scalar) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "integer" if isinstance(value, int) else "decimal"
