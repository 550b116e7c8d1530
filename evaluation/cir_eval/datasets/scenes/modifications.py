"""Modifications of a scene and the English sentences that ask for them.

A sentence and a reference determine one target: the object meant is described by words that fit one
object of the reference only, and every new value is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cir_eval.datasets.dice import Dice
from cir_eval.datasets.scenes.scene import CELLS, COLOURS, SHAPES, SIZES, Object, Scene

__all__ = ["KINDS", "Edit", "describe", "draw_edit"]

KINDS = ("add", "remove", "colour", "size", "shape", "place")

NOUNS = {
    "cube": ("cube", "cube", "box"),
    "sphere": ("sphere", "sphere", "ball"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "ring": ("ring", "ring", "donut"),
    "star": ("star",),
}
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_VALUE_WORDS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "size": SIZE_WORDS,
    "shape": NOUNS,
    "colour": {colour: (colour,) for colour in COLOURS},
}
PLACES = (
    ("top left", "upper left", "top left corner"),
    ("top center", "top middle", "upper center"),
    ("top right", "upper right", "top right corner"),
    ("middle left", "center left", "left of the middle row"),
    ("center", "middle", "center of the grid"),
    ("middle right", "center right", "right of the middle row"),
    ("bottom left", "lower left", "bottom left corner"),
    ("bottom center", "bottom middle", "lower center"),
    ("bottom right", "lower right", "bottom right corner"),
)
_ANY = ("object", "thing")


@dataclass(frozen=True)
class Edit:
    """One change of a scene.

    Attributes:
        kind: one of `KINDS`.
        cell: the cell whose object changes; for "add", the cell that receives one.
        new: the object that is in the cell afterwards; None for "remove" and "place".
        destination: for "place", the cell that the object goes to.
    """

    kind: str
    cell: int
    new: Object | None = None
    destination: int | None = None

    def apply(self, scene: Scene) -> Scene:
        """The changed scene. An attribute changes alone: other attributes are the scene's own."""
        if self.destination is not None:
            return scene.moved(self.cell, self.destination)
        if self.new is None or self.kind == "add":
            return scene.put(self.cell, self.new)
        return scene.put(self.cell, scene.at(self.cell).changed(self.kind, getattr(self.new, self.kind)))

    @property
    def touches(self) -> frozenset[tuple[int, str]]:
        """The attributes of cells that the edit reads or writes; edits that share none commute."""
        if self.kind in _VALUES:
            return frozenset({(self.cell, self.kind)})
        cells = {self.cell} if self.destination is None else {self.cell, self.destination}
        return frozenset((cell, attribute) for cell in cells for attribute in _VALUES)


_VALUES = {"colour": COLOURS, "size": SIZES, "shape": SHAPES}


def draw_edit(scene: Scene, kind: str, dice: Dice) -> Edit:
    """A random edit of one kind.

    Raises:
        ValueError: the scene admits none: no object to change, or no empty cell.
    """
    if not (scene.empty if kind == "add" else scene.occupied) or (kind == "place" and not scene.empty):
        raise ValueError(f"the scene admits no edit of kind {kind}")
    if kind == "add":
        new = Object(dice.choice(SHAPES), dice.choice(COLOURS), dice.choice(SIZES))
        return Edit(kind, dice.choice(scene.empty), new)
    cell = dice.choice(scene.occupied)
    if kind == "place":
        return Edit(kind, cell, destination=dice.choice(scene.empty))
    if kind == "remove":
        return Edit(kind, cell)
    obj = scene.at(cell)
    others = [v for v in _VALUES[kind] if v != getattr(obj, kind)]
    return Edit(kind, cell, obj.changed(kind, dice.choice(others)))


def describe(reference: Scene, edit: Edit, dice: Dice) -> str:
    """A sentence that asks for the edit and, of this reference, for no other one."""
    words: dict[str, str] = {}
    templates = _SENTENCES[edit.kind]
    if edit.kind == "add":
        assert edit.new is not None
        words["what"], words["where"] = _indefinite(_in_words(edit.new, dice)), _place(edit.cell, dice)
    else:
        words["what"] = _mention(reference, edit.cell, dice)
    if edit.destination is not None:
        words["where"] = _place(edit.destination, dice)
    if edit.kind in _VALUES:
        assert edit.new is not None
        value = getattr(edit.new, edit.kind)
        if edit.kind == "size":
            templates += _GROW if value == "large" else _SHRINK
        words["new"] = dice.choice(_VALUE_WORDS[edit.kind][value])
    return dice.choice(templates).format(**words)


_SENTENCES = {
    "add": (
        "add {what} to the {where}",
        "put {what} in the {where}",
        "place {what} at the {where}",
        "there is also {what} in the {where}",
        "with {what} in the {where}",
        "has {what} added at the {where}",
    ),
    "remove": (
        "remove {what}",
        "take away {what}",
        "delete {what}",
        "without {what}",
        "{what} is gone",
        "get rid of {what}",
    ),
    "colour": (
        "make {what} {new}",
        "paint {what} {new}",
        "change the color of {what} to {new}",
        "{what} is now {new}",
        "{what} turns {new}",
        "color {what} in {new}",
    ),
    "size": (
        "make {what} {new}",
        "{what} is now {new}",
        "{what} becomes {new}",
        "change the size of {what} to {new}",
    ),
    "shape": (
        "turn {what} into a {new}",
        "change {what} to a {new}",
        "{what} becomes a {new}",
        "{what} is a {new} instead",
        "change the shape of {what} to a {new}",
        "swap {what} for a {new} of the same color and size",
    ),
    "place": (
        "move {what} to the {where}",
        "shift {what} to the {where}",
        "bring {what} to the {where}",
        "{what} is now in the {where}",
        "{what} goes to the {where}",
    ),
}
_GROW = ("enlarge {what}", "make {what} bigger", "make {what} larger")
_SHRINK = ("shrink {what}", "make {what} smaller")


def _in_words(obj: Object, dice: Dice) -> str:
    """An object in words, all its attributes named."""
    return f"{dice.choice(SIZE_WORDS[obj.size])} {obj.colour} {dice.choice(NOUNS[obj.shape])}"


def _indefinite(noun_phrase: str) -> str:
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def _place(cell: int, dice: Dice) -> str:
    assert 0 <= cell < CELLS
    return dice.choice(PLACES[cell])


def _mention(scene: Scene, cell: int, dice: Dice) -> str:
    """Words that fit the object of this cell and no other object of the scene."""
    obj = scene.at(cell)
    others = [o for i, o in enumerate(scene.cells) if o is not None and i != cell]
    attributes = [
        names
        for names in (
            ("shape",),
            ("colour",),
            ("colour", "shape"),
            ("size", "shape"),
            ("size", "colour", "shape"),
        )
        if all(any(getattr(o, n) != getattr(obj, n) for n in names) for o in others)
    ]
    by_place = f"the {_object_word(dice)} {dice.choice(('in', 'at'))} the {_place(cell, dice)}"
    if not attributes or dice.chance(0.15):
        return by_place
    names = dice.choice(attributes)
    words = []
    if "size" in names:
        words.append(dice.choice(SIZE_WORDS[obj.size]))
    if "colour" in names:
        words.append(obj.colour)
    words.append(dice.choice(NOUNS[obj.shape]) if "shape" in names else _object_word(dice))
    return f"the {' '.join(words)}"


def _object_word(dice: Dice) -> str:
    return dice.choice(_ANY)
