"""The English that asks for a change. Reference and sentence together name one emoji."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cir_eval.datasets.dice import Dice
from cir_eval.datasets.emoji.emoji import Emoji
from cir_eval.datasets.emoji.people import ROLES
from cir_eval.datasets.emoji.things import EXPRESSIONS, PAIRS, SHAPES, SIGNS

__all__ = ["describe"]

_GENDERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "child": {"person": ("child",), "man": ("boy",), "woman": ("girl",)},
    "": {"person": ("gender neutral person", "gender neutral figure"), "man": ("man",), "woman": ("woman",)},
}
_THEM = {"man": "him", "woman": "her"}
_NEUTRAL = ("of no stated gender", "gender neutral", "neither a man nor a woman")
_HAIR = {
    "red": ("with red hair", "as a redhead", "with ginger hair"),
    "curly": ("with curly hair", "with curls"),
    "white": ("with white hair", "white haired"),
    "bald": ("bald", "without any hair", "with a bald head"),
    "blond": ("with blond hair", "as a blond"),
    "bearded": ("with a beard", "bearded"),
    "": ("with ordinary hair", "with plain dark hair"),
}
_DIRECTIONS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up right": ("up and right", "to the upper right", "to the top right"),
    "down right": ("down and right", "to the lower right", "to the bottom right"),
    "down left": ("down and left", "to the lower left", "to the bottom left"),
    "up left": ("up and left", "to the upper left", "to the top left"),
}
_ACTS = {
    "holding hands": ("holding hands", "hand in hand"),
    "kissing": ("kissing", "giving each other a kiss"),
    "in love": ("with a heart between them", "in love with a heart between them"),
}
_SPECIES = ("a {} instead", "turn it into a {}", "as a {}", "the same with a {}")
_HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_SPANS = ("half an hour", "an hour", "an hour and a half", "two hours", "two and a half hours", "three hours")
_FACING = {
    "person": ("facing {}", "turned {}", "going {}"),
    "hand": ("pointing {}", "turn it {}", "directed {}"),
    "arrow": ("pointing {}", "turn it {}", "an arrow {}"),
}


def describe(reference: Emoji, target: Emoji, changed: Sequence[str], dice: Dice) -> str:
    """A sentence that asks for the target.

    Args:
        reference: what is changed.
        target: of the same topic.
        changed: the attributes in which they differ, one or two; "left" and "right" together are both tones
            of a couple.
        dice: chooses among the sentences.
    """
    if len(changed) == 2 and set(changed) != {"left", "right"}:
        first, second = (_clause(reference, target, name, dice) for name in _in_order(changed))
        return dice.choice(("{} and {}", "{}, {}", "{}, and {}")).format(first, second)
    sentences = _sentences(reference, target, changed, dice)
    return dice.choice(sentences)


def _in_order(changed: Sequence[str]) -> list[str]:
    order = (
        "gender",
        "pair",
        "role",
        "sign",
        "act",
        "species",
        "part",
        "shape",
        "colour",
        "creature",
        "expression",
    )
    return sorted(changed, key=lambda name: order.index(name) if name in order else len(order))


def _clause(reference: Emoji, target: Emoji, name: str, dice: Dice) -> str:
    """A short way to ask for one of two changes."""
    short = _SHORT.get(name)
    if short is None:
        return dice.choice(_sentences(reference, target, (name,), dice)[:2])
    return dice.choice(short).format(**_words(reference, target, name, dice))


_TONE = (
    "with {tone} skin",
    "the same with {tone} skin",
    "with a {tone} skin tone",
    "give {them} {tone} skin",
    "change the skin tone to {tone}",
    "make the skin {tone}",
    "{tone} skin instead",
)
_TONE_OF = (
    "the {side} {one} has {tone} skin",
    "{tone} skin for the {one} on the {side}",
    "give the {one} on the {side} {tone} skin",
    "with {tone} skin on the {side}",
    "make the {side} {one} {tone} skinned",
)
_SHORT: Mapping[str, tuple[str, ...]] = {
    "gender": ("as {a_gender}", "make it {a_gender}", "{a_gender}"),
    "tone": ("with {tone} skin", "with a {tone} skin tone", "{tone} skinned"),
    "left": _TONE_OF[:3],
    "right": _TONE_OF[:3],
    "colour": ("in {colour}", "make it {colour}"),
}


def _words(reference: Emoji, target: Emoji, name: str, dice: Dice) -> dict[str, str]:
    words: dict[str, str] = {}
    if name == "gender":
        who = _GENDERS.get(target["role"], _GENDERS[""])
        words["gender"] = dice.choice(who[target["gender"]])
        words["a_gender"] = f"a {words['gender']}"
        words["them"] = _THEM.get(reference["gender"], "them")
    elif name in ("tone", "left", "right"):
        words["tone"] = _tone(target[name], dice)
        words["side"] = name
        if name != "tone":
            words["one"] = "hand" if target.topic == "handshake" else dice.choice(("person", "one"))
        words["them"] = _THEM.get(reference["gender"], "them") if target.topic == "person" else "it"
    elif name == "colour":
        words["colour"] = target["colour"]
        words["a_colour"] = _with_article(target["colour"])
    return words


def _tone(tone: str, dice: Dice) -> str:
    return dice.choice((tone, tone.replace("-", " "))) if "-" in tone else tone


def _sentences(reference: Emoji, target: Emoji, changed: Sequence[str], dice: Dice) -> tuple[str, ...]:
    """All sentences for one change."""
    name = changed[0]
    if len(changed) == 2:
        tone = _tone(target["left"], dice)
        both = "both hands" if target.topic == "handshake" else "both of them"
        return (
            f"both with {tone} skin",
            f"{tone} skin for both",
            f"give {both} {tone} skin",
            f"make {both} {tone} skinned",
        )
    words = _words(reference, target, name, dice)
    if name == "tone":
        return tuple(sentence.format(**words) for sentence in _TONE)
    if name in ("left", "right"):
        return tuple(sentence.format(**words) for sentence in _TONE_OF)
    if name == "gender":
        return _gender_sentences(words, target)
    if name == "role":
        return _role_sentences(reference, target, dice)
    if name == "hair":
        return tuple(f"{lead}{dice.choice(_HAIR[target['hair']])}" for lead in ("", "the same ", "now "))
    if name == "facing":
        where = dice.choice(_DIRECTIONS[target["facing"] or "left"])
        return tuple(sentence.format(where) for sentence in _FACING[target.topic])
    if name == "colour":
        forms = (
            "in {colour}",
            "make it {colour}",
            "{a_colour} one",
            "{a_colour} one instead",
            "paint it {colour}",
        )
        return tuple(
            form.format(**words) for form in (*forms, "the same in {colour}", "change the color to {colour}")
        )
    if name == "time":
        return _time_sentences(int(reference["time"]), int(target["time"]))
    return _thing_sentences(name, target, dice)


def _gender_sentences(words: Mapping[str, str], target: Emoji) -> tuple[str, ...]:
    forms = (
        "as {a_gender}",
        "make it {a_gender}",
        "{a_gender} instead",
        "the same as {a_gender}",
        "turn {them} into {a_gender}",
        "show {a_gender} doing this"
        if target["role"] in ROLES and ROLES[target["role"]].doing
        else "{a_gender} now",
    )
    said = tuple(form.format(**words) for form in forms)
    return (*said, *_NEUTRAL) if target["gender"] == "person" and target["role"] != "child" else said


def _role_sentences(reference: Emoji, target: Emoji, dice: Dice) -> tuple[str, ...]:
    role = ROLES[target["role"]]
    what = dice.choice(role.words)
    them = _THEM.get(reference["gender"], "them")
    if role.doing:
        return (
            what,
            f"now {what}",
            f"{what} instead",
            f"the same person {what}",
            f"show {them} {what}",
        )
    return (
        f"as {what}",
        f"now {what}",
        f"{what} instead",
        f"the same person as {what}",
        f"make {them} {what}",
        f"turn {them} into {what}",
    )


def _thing_sentences(name: str, target: Emoji, dice: Dice) -> tuple[str, ...]:
    value = target[name]
    if name == "sign":
        what = dice.choice(SIGNS[value])
        return (f"{what} instead", f"now {what}", f"make it {what}", f"change it to {what}")
    if name == "shape":
        what = dice.choice(SHAPES[value])
        return (f"as {what}", f"{what} instead", f"turn it into {what}", f"{what} of the same color")
    if name == "expression":
        look = dice.choice(EXPRESSIONS[value])
        return (look, f"{look} instead", f"now {look}", f"the same one {look}", f"but {look}")
    if name == "creature":
        if value == "cat":
            return ("as a cat", "the same look on a cat", "a cat instead", "with the face of a cat")
        return ("as a plain round face", "the same look on a yellow face", "a smiley instead of the cat")
    if name == "species":
        return tuple(sentence.format(value) for sentence in _SPECIES)
    if name == "part":
        if value == "face":
            return ("only the face", "just its head", "the face alone", "a close up of the head")
        return ("the whole animal", "show the whole body", "with body and legs", "all of it")
    if name == "pair":
        who = dice.choice(PAIRS[value])
        return (f"{who} instead", f"make them {who}", f"with {who}", f"the same with {who}")
    act = dice.choice(_ACTS[value])
    return (act, f"now {act}", f"{act} instead", f"show them {act}")


def _time_sentences(reference: int, target: int) -> tuple[str, ...]:
    later = (target - reference) % 24
    hour, half = divmod(target, 2)
    spoken = f"half past {_HOURS[hour]}" if half else f"{_HOURS[hour]} o'clock"
    absolute = (f"at {spoken}", f"{spoken} instead", f"set it to {spoken}", f"show {spoken}")
    if later <= len(_SPANS):
        span = _SPANS[later - 1]
        return (f"{span} later", f"{span} later", f"move it on by {span}", *absolute)
    if 24 - later <= len(_SPANS):
        span = _SPANS[23 - later]
        return (f"{span} earlier", f"{span} earlier", f"turn it back by {span}", *absolute)
    return absolute


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
