"""Whom the emoji of people show: the code points of roles and hair, and the English for them.

The words are ours. What a code point means is the Unicode Standard's (UTS #51, emoji sequences).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["ADULTS", "ALONE", "GENDERED", "GENDER_SIGNS", "HAIR", "IRREGULAR", "JOINED", "ROLES", "Role"]


class Role(NamedTuple):
    """What somebody is or does.

    Attributes:
        doing: whether the words are a present participle ("running"), else a noun ("a judge").
        words: synonyms.
    """

    doing: bool
    words: tuple[str, ...]


def _is(*words: str) -> Role:
    return Role(False, words)


def _does(*words: str) -> Role:
    return Role(True, words)


ADULTS: Mapping[str, str] = {"1F9D1": "person", "1F468": "man", "1F469": "woman"}
"""The figures that a joiner ties to a thing."""

GENDER_SIGNS: Mapping[str, str] = {"2642": "man", "2640": "woman"}

HAIR: Mapping[str, str] = {"1F9B0": "red", "1F9B1": "curly", "1F9B3": "white", "1F9B2": "bald"}

JOINED: Mapping[str, str] = {
    "2695": "doctor",
    "1F393": "student",
    "1F3EB": "teacher",
    "2696": "judge",
    "1F33E": "farmer",
    "1F373": "cook",
    "1F527": "mechanic",
    "1F3ED": "welder",
    "1F4BC": "office worker",
    "1F52C": "scientist",
    "1F4BB": "programmer",
    "1F3A4": "singer",
    "1F3A8": "painter",
    "2708": "pilot",
    "1F680": "astronaut",
    "1F692": "firefighter",
    "1F9AF": "cane",
    "1F9BC": "motor wheelchair",
    "1F9BD": "wheelchair",
    "1F37C": "feeding",
    "1F384": "santa",
}
"""The thing behind an adult and a joiner -> the role."""

GENDERED: Mapping[str, str] = {
    "1F46E": "police officer",
    "1F575": "detective",
    "1F482": "guard",
    "1F477": "builder",
    "1F473": "turban",
    "1F935": "tuxedo",
    "1F470": "veil",
    "1F9B8": "superhero",
    "1F9B9": "villain",
    "1F9D9": "wizard",
    "1F9DA": "fairy",
    "1F9DB": "vampire",
    "1F9DC": "merperson",
    "1F9DD": "elf",
    "1F9DE": "genie",
    "1F9DF": "zombie",
    "1F64D": "frowning",
    "1F64E": "pouting",
    "1F645": "saying no",
    "1F646": "saying ok",
    "1F481": "tipping hand",
    "1F64B": "raising hand",
    "1F9CF": "deaf",
    "1F647": "bowing",
    "1F926": "facepalm",
    "1F937": "shrugging",
    "1F486": "massage",
    "1F487": "haircut",
    "1F6B6": "walking",
    "1F9CD": "standing",
    "1F9CE": "kneeling",
    "1F3C3": "running",
    "1F9D6": "sauna",
    "1F9D7": "climbing",
    "1F3CC": "golfing",
    "1F3C4": "surfing",
    "1F6A3": "rowing",
    "1F3CA": "swimming",
    "26F9": "ball",
    "1F3CB": "weights",
    "1F6B4": "cycling",
    "1F6B5": "mountain biking",
    "1F938": "cartwheel",
    "1F93D": "water polo",
    "1F93E": "handball",
    "1F939": "juggling",
    "1F9D8": "meditating",
}
"""A figure that a sign of gender may follow -> the role."""

IRREGULAR: Mapping[str, tuple[str, str, str]] = {
    "1F9D1": ("adult", "person", ""),
    "1F468": ("adult", "man", ""),
    "1F469": ("adult", "woman", ""),
    "1F9D2": ("child", "person", ""),
    "1F466": ("child", "man", ""),
    "1F467": ("child", "woman", ""),
    "1F9D3": ("old", "person", ""),
    "1F474": ("old", "man", ""),
    "1F475": ("old", "woman", ""),
    "1FAC5": ("royal", "person", ""),
    "1F934": ("royal", "man", ""),
    "1F478": ("royal", "woman", ""),
    "1FAC4": ("pregnant", "person", ""),
    "1FAC3": ("pregnant", "man", ""),
    "1F930": ("pregnant", "woman", ""),
    "1F385": ("santa", "man", ""),
    "1F936": ("santa", "woman", ""),
    "1F57A": ("dancing", "man", ""),
    "1F483": ("dancing", "woman", ""),
    "1F471": ("adult", "person", "blond"),
    "1F9D4": ("adult", "person", "bearded"),
}
"""A figure by itself -> role, gender and hair. Signs of gender may follow the last two."""

ALONE: Mapping[str, str] = {
    "1F476": "baby",
    "1F47C": "angel",
    "1F977": "ninja",
    "1F472": "skullcap",
    "1F9D5": "headscarf",
    "1F931": "nursing",
    "1F574": "levitating",
    "1F3C7": "jockey",
    "1F3C2": "snowboarding",
    "1F6C0": "bath",
    "1F6CC": "bed",
}
"""A figure of one gender, or of none that shows."""

ROLES: Mapping[str, Role] = {
    "adult": _is("an ordinary person", "a plain person"),
    "child": _is("a child", "a kid"),
    "old": _is("an old person", "a grandparent"),
    "royal": _is("royalty", "a person with a crown"),
    "pregnant": _does("expecting a baby"),
    "santa": _is("Santa Claus", "Father Christmas"),
    "dancing": _does("dancing"),
    "doctor": _is("a doctor", "a physician"),
    "student": _is("a student", "a graduate"),
    "teacher": _is("a teacher"),
    "judge": _is("a judge"),
    "farmer": _is("a farmer"),
    "cook": _is("a cook", "a chef"),
    "mechanic": _is("a mechanic"),
    "welder": _is("a welder", "a factory worker"),
    "office worker": _is("an office worker", "a clerk"),
    "scientist": _is("a scientist", "a chemist"),
    "programmer": _is("a programmer", "a software developer"),
    "singer": _is("a singer", "a rock star"),
    "painter": _is("a painter", "an artist"),
    "pilot": _is("a pilot"),
    "astronaut": _is("an astronaut"),
    "firefighter": _is("a firefighter"),
    "cane": _does("walking with a white cane"),
    "motor wheelchair": _does("riding in a motorized wheelchair"),
    "wheelchair": _does("sitting in a manual wheelchair"),
    "feeding": _does("feeding a baby with a bottle", "giving a baby the bottle"),
    "police officer": _is("a police officer", "a cop"),
    "detective": _is("a detective", "a spy"),
    "guard": _is("a royal guard", "a guard in a bearskin hat"),
    "builder": _is("a construction worker", "a builder"),
    "turban": _does("wearing a turban"),
    "tuxedo": _does("wearing a tuxedo", "wearing a dinner jacket"),
    "veil": _does("wearing a wedding veil"),
    "superhero": _is("a superhero"),
    "villain": _is("a supervillain", "a villain"),
    "wizard": _is("a wizard", "a magician with a staff"),
    "fairy": _is("a fairy"),
    "vampire": _is("a vampire"),
    "merperson": _is("a mermaid or merman", "a merperson"),
    "elf": _is("an elf"),
    "genie": _is("a genie"),
    "zombie": _is("a zombie"),
    "frowning": _does("frowning"),
    "pouting": _does("pouting", "sulking"),
    "saying no": _does("crossing both arms for no", "gesturing no"),
    "saying ok": _does("making an okay sign with both arms", "gesturing okay"),
    "tipping hand": _does("holding out a flat hand", "tipping a hand"),
    "raising hand": _does("raising a hand"),
    "deaf": _does("pointing at the ear", "signing deaf"),
    "bowing": _does("bowing deeply", "bowing"),
    "facepalm": _does("covering the face with a hand", "facepalming"),
    "shrugging": _does("shrugging"),
    "massage": _does("getting a massage", "having a head massage"),
    "haircut": _does("getting a haircut"),
    "walking": _does("walking", "going for a walk"),
    "standing": _does("standing", "standing still"),
    "kneeling": _does("kneeling"),
    "running": _does("running", "jogging"),
    "sauna": _does("sitting in a sauna", "sitting in a steamy room"),
    "climbing": _does("climbing", "climbing a wall"),
    "golfing": _does("golfing", "playing golf"),
    "surfing": _does("surfing", "riding a wave"),
    "rowing": _does("rowing a boat", "rowing"),
    "swimming": _does("swimming"),
    "ball": _does("bouncing a ball", "playing basketball"),
    "weights": _does("lifting weights"),
    "cycling": _does("riding a bicycle", "cycling"),
    "mountain biking": _does("mountain biking", "cycling in the mountains"),
    "cartwheel": _does("doing a cartwheel", "turning cartwheels"),
    "water polo": _does("playing water polo"),
    "handball": _does("playing handball"),
    "juggling": _does("juggling"),
    "meditating": _does("meditating", "sitting in the lotus position"),
    "baby": _is("a baby"),
    "angel": _is("a baby angel", "an angel"),
    "ninja": _is("a ninja"),
    "skullcap": _does("wearing a skullcap"),
    "headscarf": _does("wearing a headscarf"),
    "nursing": _does("breastfeeding"),
    "levitating": _does("levitating in a suit"),
    "jockey": _does("riding a race horse"),
    "snowboarding": _does("snowboarding"),
    "bath": _does("taking a bath", "sitting in a bathtub"),
    "bed": _does("lying in bed", "sleeping in a bed"),
}
"""Role -> the words for it."""
