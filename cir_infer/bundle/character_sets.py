"""Which characters a class of a regular expression takes, as far as two of them can be told apart."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

__all__ = ["CharacterSet", "Span"]

Span = tuple[int, int]


@dataclass(frozen=True)
class CharacterSet:
    """Characters of a class: single spans and named sets, or all others."""

    spans: tuple[Span, ...] = ()
    names: frozenset[str] = frozenset()
    negated: bool = False
    unknown: bool = False
    """Also others than it says: a class inside a class, letters of either case."""

    def apart(self, other: CharacterSet) -> bool:
        """Whether no character is in both, as far as can be told."""
        if self.unknown or other.unknown or (self.negated and other.negated):
            return False
        if self.negated:
            return other._inside(self)
        if other.negated:
            return self._inside(other)
        return (
            not any(a[0] <= b[1] and b[0] <= a[1] for a in self.spans for b in other.spans)
            and all(_spans_outside(self.spans, name) for name in other.names)
            and all(_spans_outside(other.spans, name) for name in self.names)
            and all(frozenset((a, b)) in _APART for a in self.names for b in other.names)
        )

    def _inside(self, negated: CharacterSet) -> bool:
        return all(
            any(low <= span[0] and span[1] <= high for low, high in negated.spans) for span in self.spans
        ) and all(name in negated.names for name in self.names)


_APART = {
    frozenset(pair)
    for pair in (
        ("s", "d"),
        ("s", "w"),
        ("s", "L"),
        ("s", "N"),
        ("d", "L"),
        ("L", "N"),
        ("L", "P"),
        ("N", "P"),
    )
} | {frozenset(("s", "P")), frozenset(("d", "P"))}


def _named(name: str, character: str) -> bool:
    category = unicodedata.category(character)
    if name == "s":
        return character.isspace()
    if name == "d":
        return category == "Nd"
    if name == "w":
        return character == "_" or category[0] in "LNM"
    return category.startswith(name)


def _spans_outside(spans: tuple[Span, ...], name: str) -> bool:
    return len(name) < 3 and all(
        high - low < 512 and not any(_named(name, chr(code)) for code in range(low, high + 1))
        for low, high in spans
    )
