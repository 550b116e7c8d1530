"""An emoji and its attributes, read from its code points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cir_eval.datasets.emoji import people, things
from cir_infer.errors import shown

__all__ = ["ATTRIBUTES", "Emoji", "attributes_of", "emoji_of"]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "person": ("role", "gender", "tone", "hair", "facing"),
    "hand": ("sign", "tone", "facing"),
    "couple": ("act", "pair", "left", "right"),
    "handshake": ("left", "right"),
    "shape": ("shape", "colour"),
    "face": ("creature", "expression"),
    "animal": ("species", "part"),
    "clock": ("time",),
    "arrow": ("facing",),
}
"""Topic -> what tells its emoji apart. "" is the value of what does not show."""

_JOINER, _FACING_RIGHT = "200D", "27A1"


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        id: its code points in lower case, joined by "-", without variation selectors.
        topic: one of `ATTRIBUTES`; "" where nothing is known that could be changed.
        values: of the topic's attributes, in their order.
    """

    id: str
    topic: str = ""
    values: tuple[str, ...] = ()

    def __getitem__(self, attribute: str) -> str:
        """The value of an attribute of the topic."""
        return self.values[ATTRIBUTES[self.topic].index(attribute)]

    def without(self, *attributes: str) -> tuple[str, ...]:
        """Topic and values of all other attributes: what two emoji share that differ in these alone."""
        names = ATTRIBUTES[self.topic]
        kept = (value for name, value in zip(names, self.values, strict=True) if name not in attributes)
        return (self.topic, *kept)

    def differences(self, other: Emoji) -> tuple[str, ...]:
        """The attributes in which two emoji of one topic differ."""
        pairs = zip(ATTRIBUTES[self.topic], self.values, other.values, strict=True)
        return tuple(name for name, mine, theirs in pairs if mine != theirs)

    def to_json(self) -> dict[str, Any]:
        """What a line of `emoji.jsonl` holds of it."""
        if not self.topic:
            return {"id": self.id}
        named = zip(ATTRIBUTES[self.topic], self.values, strict=True)
        return {"id": self.id, "topic": self.topic, **{name: value for name, value in named if value}}

    @staticmethod
    def from_json(entry: Any) -> Emoji:
        """The emoji that `to_json` wrote.

        Raises:
            ValueError: the topic is not known.
            KeyError: there is no id.
        """
        topic = str(entry.get("topic", ""))
        if topic and topic not in ATTRIBUTES:
            raise ValueError(f"topic {shown(topic)}; expected one of {', '.join(ATTRIBUTES)}")
        return Emoji(
            str(entry["id"]), topic, tuple(str(entry.get(name, "")) for name in ATTRIBUTES.get(topic, ()))
        )


def emoji_of(ids: Iterable[str]) -> list[Emoji]:
    """The emoji of a gallery, with their attributes.

    Args:
        ids: code points in lower case, joined by "-", without variation selectors.

    Returns:
        One an id, in the order of the ids. An emoji without a skin tone is yellow where `ids` has it in
        another tone too, else its tone is not known.
    """
    parts = {id_: _taken_apart(id_) for id_ in ids}
    toned = {codes for codes, tones in parts.values() if tones}
    found = []
    for id_, (codes, tones) in parts.items():
        known = tones or (("",) if codes in toned else None)
        found.append(Emoji(id_, *attributes_of(codes, known)))
    return found


def attributes_of(codes: tuple[str, ...], tones: tuple[str, ...] | None) -> tuple[str, tuple[str, ...]]:
    """Topic and values of an emoji; ("", ()) where nothing is known that could be changed.

    Args:
        codes: its code points without skin tones, joiners and variation selectors, e.g. ("1F469", "1F692").
        tones: its skin tones, one or one for each of two people; None where it comes in none.
    """
    tone, other = ("", "") if not tones else (things.TONES[tones[0]], things.TONES[tones[-1]])
    if codes in things.COUPLES:
        return "couple", (*things.COUPLES[codes], tone, other)
    if codes in things.HANDSHAKES:
        return "handshake", (tone, other)
    figure = _figure(codes)
    if figure is not None:
        return "person", (*figure[:2], tone, *figure[2:])
    if len(codes) > 1:
        return "", ()
    code = codes[0]
    if code in things.HANDS:
        sign, facing = things.HANDS[code]
        return "hand", (sign, tone, facing)
    for topic, table in (("shape", things.COLOURED), ("face", things.FACES), ("animal", things.ANIMALS)):
        if code in table:
            return topic, table[code]
    if code in things.ARROWS:
        return "arrow", (things.ARROWS[code],)
    time = things.clock(code)
    return ("", ()) if time is None else ("clock", (str(time),))


def _taken_apart(id_: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Code points without tones, and the tones. A couple of two tones goes by the name of one of one."""
    every = [code for code in id_.upper().split("-") if code != _JOINER]
    codes = tuple(code for code in every if code not in things.TONES)
    if not codes:  # a skin tone by itself
        return tuple(every), ()
    return things.SHORTER.get(codes, codes), tuple(code for code in every if code in things.TONES)


def _figure(codes: tuple[str, ...]) -> tuple[str, str, str, str] | None:
    """Role, gender, hair and facing of one person; None: it is none that is known."""
    facing = ""
    if len(codes) > 1 and codes[-1] == _FACING_RIGHT:
        codes, facing = codes[:-1], "right"
    found = _named(codes)
    if found is None:
        return None
    return (*found, facing)


def _named(codes: Iterable[str]) -> tuple[str, str, str] | None:
    first, *rest = codes
    if not rest:
        if first in people.IRREGULAR:
            return people.IRREGULAR[first]
        if first in people.GENDERED:
            return people.GENDERED[first], "person", ""
        return (people.ALONE[first], "", "") if first in people.ALONE else None
    if len(rest) > 1:
        return None
    if rest[0] in people.GENDER_SIGNS:
        gender = people.GENDER_SIGNS[rest[0]]
        if first in people.GENDERED:
            return people.GENDERED[first], gender, ""
        found = people.IRREGULAR.get(first)
        return None if found is None else (found[0], gender, found[2])
    if first in people.ADULTS:
        if rest[0] in people.HAIR:
            return "adult", people.ADULTS[first], people.HAIR[rest[0]]
        if rest[0] in people.JOINED:
            return people.JOINED[rest[0]], people.ADULTS[first], ""
    return None
