"""A scene: coloured objects of two sizes on a 3x3 grid."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cir_infer.errors import shown

__all__ = ["CELLS", "COLOURS", "HELD_OUT", "SHAPES", "SIZES", "Object", "Scene", "differences"]

SHAPES = ("cube", "sphere", "cylinder", "cone", "ring", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
SIZES = ("small", "large")
CELLS = 9
"""Cells of the grid, row by row from the top left."""

HELD_OUT = frozenset(
    {
        ("cube", "red"),
        ("sphere", "orange"),
        ("cylinder", "yellow"),
        ("cone", "green"),
        ("ring", "cyan"),
        ("star", "blue"),
        ("sphere", "purple"),
        ("cone", "black"),
    }
)
"""Compositions (shape, colour) that no training scene holds; every colour and every shape has one.

A constant and not a draw: a model trained on one seed meets them for the first time on every seed.
"""


@dataclass(frozen=True)
class Object:
    """One object, e.g. a large red cube."""

    shape: str
    colour: str
    size: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    @staticmethod
    def parse(text: str) -> Object:
        """The object that `str` wrote.

        Raises:
            ValueError: the text is not a size, a colour and a shape.
        """
        size, colour, shape = text.split(" ")
        if size not in SIZES or colour not in COLOURS or shape not in SHAPES:
            raise ValueError(f"{shown(text)} is not a size, a colour and a shape")
        return Object(shape, colour, size)

    @property
    def held_out(self) -> bool:
        """Whether no training scene holds this composition of shape and colour."""
        return (self.shape, self.colour) in HELD_OUT

    def changed(self, attribute: str, value: str) -> Object:
        """A copy whose attribute ("shape", "colour" or "size") has another value."""
        return dataclasses.replace(self, **{attribute: value})


@dataclass(frozen=True)
class Scene:
    """Nine cells, row by row from the top left, each empty or holding one object."""

    cells: tuple[Object | None, ...]

    @property
    def occupied(self) -> tuple[int, ...]:
        """The cells that hold an object."""
        return tuple(i for i, o in enumerate(self.cells) if o is not None)

    @property
    def empty(self) -> tuple[int, ...]:
        """The cells that hold none."""
        return tuple(i for i, o in enumerate(self.cells) if o is None)

    @property
    def objects(self) -> tuple[Object, ...]:
        """The objects, by cell."""
        return tuple(o for o in self.cells if o is not None)

    @property
    def held_out(self) -> bool:
        """Whether it holds a composition that no training scene holds."""
        return any(o.held_out for o in self.objects)

    def at(self, cell: int) -> Object:
        """The object of an occupied cell."""
        found = self.cells[cell]
        if found is None:
            raise ValueError(f"cell {cell} is empty")
        return found

    def put(self, cell: int, content: Object | None) -> Scene:
        """A copy with another content of one cell."""
        return Scene((*self.cells[:cell], content, *self.cells[cell + 1 :]))

    def moved(self, source: int, destination: int) -> Scene:
        """A copy with the object of one cell in another, empty one."""
        if self.cells[destination] is not None:
            raise ValueError(f"cell {destination} is occupied")
        return self.put(source, None).put(destination, self.at(source))

    def to_json(self) -> list[str | None]:
        """Nine entries: null or e.g. "large red cube"."""
        return [None if o is None else str(o) for o in self.cells]

    @staticmethod
    def from_json(cells: Any) -> Scene:
        """The scene that `to_json` wrote.

        Raises:
            ValueError: it is not a list of nine such entries.
        """
        if not isinstance(cells, list) or len(cells) != CELLS:
            raise ValueError(f"expected a list of {CELLS} cells")
        return Scene(tuple(None if c is None else Object.parse(c) for c in cells))


def differences(a: Scene, b: Scene) -> int:
    """How many attributes tell two scenes apart.

    A colour, size or shape of one cell's object counts one each, an object that is in another cell
    counts one, an object that only one of the scenes holds counts one.
    """
    changed = [(x, y) for x, y in zip(a.cells, b.cells, strict=True) if x != y]
    both = sum(
        (x.shape != y.shape) + (x.colour != y.colour) + (x.size != y.size)
        for x, y in changed
        if x is not None and y is not None
    )
    only_a = [x for x, y in changed if y is None]
    only_b = [y for x, y in changed if x is None]
    moved = 0
    for gone in only_a:
        if gone in only_b:
            only_b.remove(gone)
            moved += 1
    return both + moved + (len(only_a) - moved) + len(only_b)
