"""Modifications of a scene and the English sentences that ask for them.

A sentence and a reference determine one target: the object meant is described by words that fit one
object of the reference only, and every new value is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cir_bench.datasets.scenes.dice import Dice
from cir_bench.datasets.scenes.scene import CELLS, COLOURS, SHAPES, SIZES, Object, Scene

__all__ = ["KINDS", "NOUNS", "PLACES", "SIZE_WORDS", "Modification", "draw_modification"]

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
class Modification:
    """One edit of a reference: its kind, the sentence that asks for it, the scene that answers it."""

    kind: str
    text: str
    target: Scene


def draw_modification(
    reference: Scene, kind: str, dice: Dice, allowed: Callable[[Object], bool]
) -> Modification:
    """A random modification of one kind.

    Args:
        reference: the scene to modify; needs an empty cell for "add" and "place", an object otherwise.
        kind: one of `KINDS`.
        dice: the source of every choice.
        allowed: which objects the target may hold anew.

    Raises:
        ValueError: the scene admits no modification of this kind.
    """
    return _DRAW[kind](reference, dice, allowed)


def _add(scene: Scene, dice: Dice, allowed: Callable[[Object], bool]) -> Modification:
    cell = dice.choice(scene.empty)
    new = dice.choice([o for o in _ALL if allowed(o)])
    what, where = _indefinite(_in_words(new, dice)), _place(cell, dice)
    template = dice.choice(
        (
            "add {what} to the {where}",
            "put {what} in the {where}",
            "place {what} at the {where}",
            "there is also {what} in the {where}",
            "with {what} in the {where}",
            "has {what} added at the {where}",
        )
    )
    return Modification("add", template.format(what=what, where=where), scene.put(cell, new))


def _remove(scene: Scene, dice: Dice, _: Callable[[Object], bool]) -> Modification:
    cell = dice.choice(scene.occupied)
    template = dice.choice(
        (
            "remove {what}",
            "take away {what}",
            "delete {what}",
            "without {what}",
            "{what} is gone",
            "get rid of {what}",
        )
    )
    return Modification("remove", template.format(what=_mention(scene, cell, dice)), scene.put(cell, None))


def _colour(scene: Scene, dice: Dice, allowed: Callable[[Object], bool]) -> Modification:
    cell, new = _changed(scene, "colour", COLOURS, dice, allowed)
    template = dice.choice(
        (
            "make {what} {new}",
            "paint {what} {new}",
            "change the color of {what} to {new}",
            "{what} is now {new}",
            "{what} turns {new}",
            "color {what} in {new}",
        )
    )
    text = template.format(what=_mention(scene, cell, dice), new=new.colour)
    return Modification("colour", text, scene.put(cell, new))


def _size(scene: Scene, dice: Dice, allowed: Callable[[Object], bool]) -> Modification:
    cell, new = _changed(scene, "size", SIZES, dice, allowed)
    templates = [
        "make {what} {new}",
        "{what} is now {new}",
        "{what} becomes {new}",
        "change the size of {what} to {new}",
    ]
    templates += (
        ["enlarge {what}", "make {what} bigger", "make {what} larger"]
        if new.size == "large"
        else ["shrink {what}", "make {what} smaller"]
    )
    text = dice.choice(templates).format(
        what=_mention(scene, cell, dice), new=dice.choice(SIZE_WORDS[new.size])
    )
    return Modification("size", text, scene.put(cell, new))


def _shape(scene: Scene, dice: Dice, allowed: Callable[[Object], bool]) -> Modification:
    cell, new = _changed(scene, "shape", SHAPES, dice, allowed)
    template = dice.choice(
        (
            "turn {what} into a {new}",
            "change {what} to a {new}",
            "{what} becomes a {new}",
            "{what} is a {new} instead",
            "change the shape of {what} to a {new}",
            "swap {what} for a {new} of the same color and size",
        )
    )
    text = template.format(what=_mention(scene, cell, dice), new=dice.choice(NOUNS[new.shape]))
    return Modification("shape", text, scene.put(cell, new))


def _move(scene: Scene, dice: Dice, _: Callable[[Object], bool]) -> Modification:
    cell, destination = dice.choice(scene.occupied), dice.choice(scene.empty)
    template = dice.choice(
        (
            "move {what} to the {where}",
            "shift {what} to the {where}",
            "bring {what} to the {where}",
            "{what} is now in the {where}",
            "{what} goes to the {where}",
        )
    )
    text = template.format(what=_mention(scene, cell, dice), where=_place(destination, dice))
    return Modification("place", text, scene.moved(cell, destination))


_DRAW = {"add": _add, "remove": _remove, "colour": _colour, "size": _size, "shape": _shape, "place": _move}
_ALL = tuple(Object(s, c, z) for s in SHAPES for c in COLOURS for z in SIZES)


def _changed(
    scene: Scene, attribute: str, values: tuple[str, ...], dice: Dice, allowed: Callable[[Object], bool]
) -> tuple[int, Object]:
    """A cell and its object with another value of the attribute."""
    options = [
        (cell, new)
        for cell in scene.occupied
        for value in values
        if value != getattr(scene.at(cell), attribute)
        for new in [scene.at(cell).changed(attribute, value)]
        if allowed(new)
    ]
    if not options:
        raise ValueError(f"no object of the scene may change its {attribute}")
    return dice.choice(options)


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
