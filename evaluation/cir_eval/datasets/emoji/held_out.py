"""Which compositions occur in no training query: they are constants, and depend on no seed and no style."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cir_eval.datasets.emoji.emoji import Emoji
from cir_eval.datasets.emoji.things import TONES

__all__ = ["held_out"]

_PEOPLE = tuple(TONES.values())
_FIXED = {
    "test": frozenset(
        {
            ("heart", "green"),
            ("heart", "brown"),
            ("circle", "purple"),
            ("circle", "yellow"),
            ("square", "red"),
            ("square", "blue"),
            ("cat", "crying"),
            ("cat", "in love"),
            ("face", "smirking"),
            ("clock", "7"),  # half past three
            ("clock", "10"),
            ("clock", "14"),
            ("clock", "21"),
        }
    ),
    "validation": frozenset(
        {
            ("heart", "purple"),
            ("circle", "blue"),
            ("square", "orange"),
            ("cat", "laughing"),
            ("face", "kissing"),
            ("clock", "2"),
            ("clock", "17"),
            ("clock", "22"),
        }
    ),
}
"""Shapes and colours, faces and expressions, times in half hours."""

_NEVER_SEEN = 5
"""Of so many roles with genders, one is never seen in one of them before the test, one before validation."""


@lru_cache(maxsize=8192)
def held_out(emoji: Emoji) -> str:
    """The split that an emoji's composition is kept for: "test", "validation", or "" where all may see it.

    Of every role and sign one skin tone is kept for each of both splits, of some roles a gender, of couples
    one pair of tones in six; of shapes, faces and clocks those in `_FIXED`.
    """
    splits = {split for split in _FIXED if any(_holds(emoji, split))}
    return "test" if "test" in splits else "validation" if splits else ""


def _holds(emoji: Emoji, split: str) -> list[bool]:
    second = split == "validation"
    if emoji.topic in ("person", "hand"):
        subject = (
            emoji["role"] + emoji["hair"] if emoji.topic == "person" else emoji["sign"] + emoji["facing"]
        )
        tone = _number(subject, "tone")
        if second:
            tone += 1 + _number(subject, "validation") % (len(_PEOPLE) - 1)
        kept = [emoji["tone"] == _PEOPLE[tone % len(_PEOPLE)]]
        if emoji.topic == "person" and emoji["gender"]:
            chosen = _number(subject, "gender")
            gender = ("person", "man", "woman")[chosen // _NEVER_SEEN % 3]
            kept.append(chosen % _NEVER_SEEN == int(second) and emoji["gender"] == gender)
        return kept
    if emoji.topic in ("couple", "handshake"):
        tones = emoji["left"], emoji["right"]
        return [tones != ("yellow", "yellow") and _number(emoji.topic, *emoji.values) % 6 == int(second)]
    pair = ("clock", emoji["time"]) if emoji.topic == "clock" else emoji.values
    return [pair in _FIXED[split]]


def _number(*words: str) -> int:
    """A number that follows from words alone, on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:4], "big")
