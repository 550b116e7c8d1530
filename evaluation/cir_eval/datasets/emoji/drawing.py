"""Draws the queries of all splits from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cir_eval.datasets.dice import Dice
from cir_eval.datasets.emoji.emoji import ATTRIBUTES, Emoji
from cir_eval.datasets.emoji.held_out import held_out
from cir_eval.datasets.emoji.sentences import describe
from cir_eval.datasets.generated import Query
from cir_infer.errors import UsageError

__all__ = ["KINDS", "Plan", "draw_queries", "kind_of"]

KINDS: dict[str, str] = {
    "role": "role",
    "sign": "role",
    "act": "role",
    "gender": "gender",
    "pair": "gender",
    "tone": "tone",
    "left": "tone",
    "right": "tone",
    "hair": "hair",
    "facing": "direction",
    "colour": "colour",
    "shape": "shape",
    "expression": "expression",
    "creature": "creature",
    "species": "creature",
    "part": "part",
    "time": "time",
}
"""Attribute -> the kind of a query that changes it alone; "two" is one that changes two."""

_BOTH = ("left", "right")
_EDITS: tuple[tuple[str, ...], ...] = (_BOTH, *((name,) for name in KINDS))
"""What one query may change: an attribute, or both tones of a couple at once."""

_TOGETHER = (
    ("gender", "tone"),
    ("role", "gender"),
    ("role", "tone"),
    ("hair", "gender"),
    ("hair", "tone"),
    ("sign", "tone"),
    ("shape", "colour"),
    ("creature", "expression"),
    ("act", "pair"),
)
"""What a query of kind "two" changes."""

_SHOWN = ("gender", "tone")
"""What is empty where it does not show, and then is not changed."""

_TOPICS = {
    "person": 12,
    "hand": 3,
    "couple": 3,
    "handshake": 1,
    "shape": 2,
    "face": 2,
    "clock": 2,
    "arrow": 1,
    "animal": 1,
}
"""How often a training family is of a topic."""

_VARYING = 3
"""Attributes that vary within a family."""


@dataclass(frozen=True)
class Plan:
    """What to draw.

    Attributes:
        train_families: of the training split.
        validation_queries: at most so many.
        test_queries: likewise.
        hard_negatives: for each query outside training, emoji one attribute away from its target.
        seed: everything is drawn from it.
    """

    train_families: int = 4000
    validation_queries: int = 400
    test_queries: int = 1500
    hard_negatives: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train_families, self.validation_queries, self.test_queries, self.hard_negatives) < 0:
            raise UsageError("a number of families, queries or hard negatives is negative")


def kind_of(changed: Sequence[str]) -> str:
    """The kind of a query that changes these attributes."""
    return KINDS[changed[0]] if len(changed) == 1 or set(changed) == set(_BOTH) else "two"


def draw_queries(emoji: Sequence[Emoji], plan: Plan) -> dict[str, list[Query]]:
    """The queries of all splits, by name.

    Args:
        emoji: all of the gallery.
        plan: how many.

    Returns:
        Every target of a test or validation query is held out for that split, so that no training query holds
        it, as a reference or as a target.
    """
    usable = [one for one in emoji if one.topic]
    near = _Neighbours(usable)
    return {
        "train": _draw_families([one for one in usable if not held_out(one)], plan),
        "validation": _draw_held_out(usable, near, "validation", plan.validation_queries, plan),
        "test": _draw_held_out(usable, near, "test", plan.test_queries, plan),
    }


class _Neighbours:
    """Emoji by what they share."""

    def __init__(self, emoji: Sequence[Emoji]) -> None:
        self._groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Emoji]] = {}
        for one in emoji:
            for changed in (*_EDITS, *_TOGETHER):
                if set(changed) <= set(ATTRIBUTES[one.topic]):
                    self._groups.setdefault((changed, one.without(*changed)), []).append(one)

    def of(self, one: Emoji, changed: tuple[str, ...]) -> list[Emoji]:
        """All that differ from it in each of these attributes and in no other."""
        if not set(changed) <= set(ATTRIBUTES[one.topic]):
            return []
        group = self._groups.get((changed, one.without(*changed)), [])
        return [other for other in group if _asked_for(one, other) == set(changed)]


def _asked_for(a: Emoji, b: Emoji) -> set[str]:
    """What leads from one emoji to another; empty where a gender or a tone does not show in one of them."""
    changed = a.differences(b)
    return set() if any(not (a[name] and b[name]) for name in changed if name in _SHOWN) else set(changed)


def _draw_held_out(
    usable: Sequence[Emoji], near: _Neighbours, split: str, most: int, plan: Plan
) -> list[Query]:
    """A query of each kind that leads to an emoji which is held out for the split; some of these."""
    dice = Dice("emoji", split, plan.seed)
    drawn: list[Query] = []
    for target in dice.shuffled([one for one in usable if held_out(one) == split]):
        for kind, ways in _ways_to(target, near, split).items():
            reference, changed = dice.choice(ways)
            drawn.append(
                Query(
                    reference.id,
                    describe(reference, target, changed, dice),
                    target.id,
                    kind,
                    hard_negatives=tuple(
                        one.id
                        for one in dice.sample(_others(target, reference, near, split), plan.hard_negatives)
                    ),
                )
            )
    return _some_of_each_kind(drawn, most, dice)


def _ways_to(target: Emoji, near: _Neighbours, split: str) -> dict[str, list[tuple[Emoji, tuple[str, ...]]]]:
    """References and changes that lead to a target, by kind."""
    ways: dict[str, list[tuple[Emoji, tuple[str, ...]]]] = {}
    for changed in (*_EDITS, *_TOGETHER):
        if changed == _BOTH and (
            len(set(ATTRIBUTES[target.topic]) & set(_BOTH)) < 2 or target["left"] != target["right"]
        ):
            continue  # a sentence gives both the same tone
        for reference in near.of(target, changed):
            if _may_see(split, reference):
                ways.setdefault(kind_of(changed), []).append((reference, changed))
    return ways


def _others(target: Emoji, reference: Emoji, near: _Neighbours, split: str) -> list[Emoji]:
    found = {one.id: one for changed in _EDITS for one in near.of(target, changed)}
    return [one for one in found.values() if one != reference and _may_see(split, one)]


def _may_see(split: str, emoji: Emoji) -> bool:
    """Validation sees nothing that the test keeps."""
    return split == "test" or held_out(emoji) != "test"


def _some_of_each_kind(queries: Sequence[Query], most: int, dice: Dice) -> list[Query]:
    """At most so many, the kinds as equal in number as they can be."""
    left = {
        kind: dice.shuffled([q for q in queries if q.kind == kind])
        for kind in sorted({q.kind for q in queries})
    }
    chosen: list[Query] = []
    while len(chosen) < most and any(left.values()):
        for of_kind in left.values():
            if of_kind and len(chosen) < most:
                chosen.append(of_kind.pop())
    return dice.shuffled(chosen)


def _draw_families(usable: Sequence[Emoji], plan: Plan) -> list[Query]:
    """Training queries in families: emoji over two values of some attributes, and a query along every edge.

    What lies one change away from a target is in its own family, so a batch of whole families holds negatives
    of the kind that the galleries hold.
    """
    dice = Dice("emoji", "train", plan.seed)
    near = _Neighbours(usable)
    if not any(near.of(one, (name,)) for one in usable for name in ATTRIBUTES[one.topic]):
        return []  # among these few there is nothing to ask for
    by_values = {(one.topic, *one.values): one for one in usable}
    topics = {topic: [one for one in usable if one.topic == topic] for topic in ATTRIBUTES}
    weighted = [topic for topic, weight in _TOPICS.items() if topics[topic] for _ in range(weight)]
    drawn: list[Query] = []
    family = 0
    while family < plan.train_families:
        base = dice.choice(topics[dice.choice(weighted)])
        members = _family(base, by_values, near, dice)
        queries = [
            Query(a.id, describe(a, b, changed, dice), b.id, kind_of(changed), family)
            for a, b, changed in _edges(members, dice)
        ]
        drawn += queries
        family += bool(queries)
    return drawn


def _family(
    base: Emoji, by_values: Mapping[tuple[str, ...], Emoji], near: _Neighbours, dice: Dice
) -> list[Emoji]:
    """The emoji over some values of up to three attributes, all that there are of them."""
    names = ATTRIBUTES[base.topic]
    others = [
        sorted({one.values[place] for one in near.of(base, (name,))}) for place, name in enumerate(names)
    ]
    varying = dice.sample([place for place, values in enumerate(others) if values], _VARYING)
    more = {1: 4, 2: 2}.get(len(varying), 1)
    values = [
        [own, *(dice.sample(others[place], more) if place in varying else ())]
        for place, own in enumerate(base.values)
    ]
    return [by_values[key] for key in product((base.topic,), *values) if key in by_values]


def _edges(members: Sequence[Emoji], dice: Dice) -> Iterator[tuple[Emoji, Emoji, tuple[str, ...]]]:
    """Every pair that one query may lead from and to; of those with two changes, one in three."""
    for a in members:
        for b in members:
            changed = tuple(name for name in ATTRIBUTES[a.topic] if name in _asked_for(a, b))
            if len(changed) == 1:
                yield a, b, changed
            elif changed == _BOTH:
                if b["left"] == b["right"]:
                    yield a, b, _BOTH
            elif any(set(changed) == set(pair) for pair in _TOGETHER) and dice.chance(1 / 3):
                yield a, b, changed
