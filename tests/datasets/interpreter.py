"""Reads a modification's sentence and carries it out: written apart from the generator, to check it.

It sees the reference and the words only. A sentence that fits two objects, or none, is an error.
"""

from __future__ import annotations

from cir_eval.datasets.scenes.scene import COLOURS, Object, Scene

_NOUNS = {
    "cube": "cube",
    "box": "cube",
    "sphere": "sphere",
    "ball": "sphere",
    "cylinder": "cylinder",
    "cone": "cone",
    "ring": "ring",
    "donut": "ring",
    "star": "star",
}
_SIZES = {
    "small": "small",
    "little": "small",
    "smaller": "small",
    "shrink": "small",
    "large": "large",
    "big": "large",
    "bigger": "large",
    "larger": "large",
    "enlarge": "large",
}
_ROWS = {"top": 0, "upper": 0, "middle": 1, "bottom": 2, "lower": 2}


def carry_out(reference: Scene, text: str) -> Scene:
    """The one scene that the sentence asks for."""
    words = text.split()
    if _has(words, "add", "put", "also", "with", "added") or words[0] == "place":
        new, _, place = _split_at(words, "in", "at", "to")
        cell = _cell(place)
        assert reference.cells[cell] is None, f"{text!r}: the cell is taken"
        found = _attributes(new)
        return reference.put(cell, Object(found["shape"], found["colour"], found["size"]))
    if _has(words, "remove", "away", "delete", "without", "gone", "rid"):
        return reference.put(_mentioned(reference, words), None)
    if _has(words, "move", "shift", "bring", "goes"):
        what, _, place = _last_split(words, "to")
        return reference.moved(_mentioned(reference, what), _cell(place))
    for marker in ("becomes", "is", "turns", "into", "to", "for"):
        if marker in words:
            what, _, new = _last_split(words, marker)
            break
    else:
        if words[0] in ("enlarge", "shrink"):
            what, new = words[1:], words[:1]
        elif words[0] == "color":
            what, _, new = _last_split(words, "in")
        else:
            what, new = words[:-1], words[-1:]
    cell = _mentioned(reference, what)
    if new[:1] == ["now"] and new[1:2] == ["in"]:
        return reference.moved(cell, _cell(new[2:]))
    values = {k: v for k, v in _attributes(new).items() if v is not None}
    assert len(values) == 1, f"{text!r}: {values} is not one new value"
    [(attribute, value)] = values.items()
    assert getattr(reference.at(cell), attribute) != value, f"{text!r}: nothing changes"
    return reference.put(cell, reference.at(cell).changed(attribute, value))


def _has(words, *markers):
    return any(m in words for m in markers)


def _split_at(words, *markers):
    at = next(i for i, w in enumerate(words) if w in markers and i > 2)
    return words[:at], words[at], words[at + 1 :]


def _last_split(words, marker):
    at = len(words) - 1 - words[::-1].index(marker)
    return words[:at], marker, words[at + 1 :]


def _attributes(words):
    found = {
        "shape": [_NOUNS[w] for w in words if w in _NOUNS],
        "colour": [w for w in words if w in COLOURS],
        "size": [_SIZES[w] for w in words if w in _SIZES],
    }
    return {k: v[0] if v else None for k, v in found.items()}


def _mentioned(scene, words):
    """The only occupied cell that the words fit."""
    if "object" in words or "thing" in words:
        at = max(words.index(w) for w in ("object", "thing") if w in words)
        if words[at + 1 : at + 2] in (["in"], ["at"]):
            cell = _cell(words[at + 2 :])
            assert scene.cells[cell] is not None, f"{words}: nothing is there"
            return cell
    wanted = {k: v for k, v in _attributes(words).items() if v is not None}
    assert wanted, f"{words}: mentions nothing"
    fits = [c for c in scene.occupied if all(getattr(scene.at(c), k) == v for k, v in wanted.items())]
    assert len(fits) == 1, f"{words}: fits cells {fits}"
    return fits[0]


def _cell(words):
    words = [w for w in words if w not in ("the", "corner", "is", "gone", "goes")]
    if words in (["center"], ["middle"], ["center", "of", "grid"]):
        return 4
    if words[-3:] == ["of", "middle", "row"]:
        return 3 if words[0] == "left" else 5
    row = _ROWS.get(words[0], 1)
    return 3 * row + {"left": 0, "center": 1, "middle": 1, "right": 2}[words[1]]
