"""What a regular expression of a tokenizer may cost, known from its text: some take hours for a line.

A pattern is read by a grammar of what tokenizers use: literals, classes, groups, alternatives, repetitions,
look-arounds, anchors. Anything else is refused. A search tries every position of a text, and from each as
many ways through the pattern as its repetitions leave open. So what counts is how many repetitions without
an end stand where something behind them can still fail: none makes a search linear in the text, one
quadratic; more are refused.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from cir_infer.bundle.character_sets import CharacterSet, Span

__all__ = ["Cost", "pattern_cost"]

_MOST_WAYS = 1000
_MOST_NODES = 20_000
_LONGEST = 4000
_DEEPEST = 20


@dataclass(frozen=True)
class Cost:
    """What a search of a pattern can take and find.

    Attributes:
        degree: 0 where a search takes time in proportion to the text, 1 where with its square.
        ways: by how much a position costs more than a step.
        shortest: characters of the shortest match; 0 where it may match nothing.
        literal: the characters of the match, where that is always the same text.
    """

    degree: int
    ways: int
    shortest: int
    literal: str | None = None


@lru_cache(1024)
def pattern_cost(pattern: str) -> Cost:
    """Reads a pattern.

    Raises:
        ValueError: it holds what is not on the list, or can take more than the square of a text's length.
    """
    if len(pattern) > _LONGEST:
        raise ValueError(f"it has {len(pattern):,} characters")
    node = _Parser(pattern).whole()
    if node.size > _MOST_NODES:
        raise ValueError("its repetitions multiply")
    costs = [_sequence(sequence, can_fail=False) for sequence in node.inner]
    degree = max(cost.degree for cost in costs)
    if degree > 1 or sum(cost.ways for cost in costs) > _MOST_WAYS:
        raise ValueError("a search of it can take far longer than the text is long")
    ways = sum(cost.ways for cost in costs if cost.degree == degree)
    return Cost(degree, ways, node.shortest, node.literal)


@dataclass
class _Node:
    """A part of a pattern: a class, an assertion, or alternatives of sequences; how often it may come.

    Attributes:
        chars: the class; None for others.
        inner: the alternatives.
        assertion: it takes no character: an anchor, or a look-around at `inner`.
    """

    chars: CharacterSet | None = None
    inner: list[list[_Node]] = field(default_factory=list)
    assertion: bool = False
    low: int = 1
    high: int | None = 1
    possessive: bool = False
    size: int = 1
    shortest: int = 1
    literal: str | None = None

    @property
    def endless(self) -> bool:
        """Whether a match of it may be as long as the text."""
        return self.high is None or any(part.endless for sequence in self.inner for part in sequence)

    @property
    def can_fail(self) -> bool:
        """Whether a text can make it fail, however it goes on."""
        if self.low == 0:
            return False
        return self.chars is not None or self.assertion or all(any(i.can_fail for i in s) for s in self.inner)

    def first(self) -> list[CharacterSet] | None:
        """The classes that a match of it begins with; None where that is open."""
        if self.assertion or self.low == 0:
            return None
        if self.chars is not None:
            return [self.chars]
        found: list[CharacterSet] = []
        for sequence in self.inner:
            start = sequence[0].first() if sequence else None
            if start is None:
                return None
            found += start
        return found


def _alternatives(node: _Node, can_fail: bool) -> Cost:
    """Of one pass through the alternatives of a node, none of which need be the last thing."""
    costs = [_sequence(sequence, can_fail) for sequence in node.inner]
    return Cost(max(c.degree for c in costs), sum(c.ways for c in costs), 0)


def _sequence(items: list[_Node], can_fail: bool) -> Cost:
    # Steps are summed over the items: each is tried once for every way through those before it, and a
    # repetition without an end then takes as many steps as the text is long.
    degree, open_ends, ways = 0, 0, 1
    for place, item in enumerate(items):
        rest = items[place + 1 :]
        fails = can_fail or any(other.can_fail for other in rest)
        # Once a look-around or a possessive group has its answer, nothing goes back into it.
        atomic = item.assertion or item.possessive
        if item.endless and (fails or atomic):
            degree = max(degree, open_ends + 1)
        if item.inner:
            inner = _alternatives(item, (fails and not atomic) or _repeats(item))
            degree = max(degree, open_ends + inner.degree)
            open_ends += 0 if atomic else inner.degree
            ways *= inner.ways
            if _repeats(item) and not atomic and not _one_way(item):
                if item.high is None or item.high > 20:
                    raise ValueError("a repeated group can match in many ways")
                ways *= max(inner.ways, 2) ** item.high
        if fails and not atomic and not _bounded_by_next(item, rest):
            if item.high is None:
                open_ends += 1
            elif item.high > item.low:
                ways *= item.high - item.low + 1
        if ways > 1 << 40:
            raise ValueError("it can match in many ways")
    return Cost(max(degree, open_ends), ways, 0)


def _repeats(item: _Node) -> bool:
    return item.high is None or item.high > 1


def _one_way(item: _Node) -> bool:
    """Whether each repetition of a group takes one way only: single characters that exclude one another."""
    if item.chars is not None:
        return True
    sets = []
    for sequence in item.inner:
        if any(part.low != 1 or part.high != 1 or part.assertion or part.inner for part in sequence):
            return False
        if not sequence or sequence[0].chars is None:
            return False
        sets.append(sequence[0].chars)
    return all(a.apart(b) for place, a in enumerate(sets) for b in sets[:place])


def _bounded_by_next(item: _Node, rest: list[_Node]) -> bool:
    """Whether what follows cannot begin with what is repeated, so that giving one back never helps."""
    if not rest:
        return False
    own = [item.chars] if item.chars is not None else [c for s in item.inner for c in _chars_of(s)]
    following = rest[0].first()
    if following is None or any(one is None for one in own):
        return False
    return all(a is not None and a.apart(b) for a in own for b in following)


def _chars_of(sequence: list[_Node]) -> list[CharacterSet | None]:
    return [part.chars for part in sequence] or [None]


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._either_case = False

    def whole(self) -> _Node:
        node = self._group_body(0)
        if self._at < len(self._text):
            self._refuse("a parenthesis too many")
        return node

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{what} at character {self._at + 1}")

    def _peek(self, ahead: int = 1) -> str:
        return self._text[self._at : self._at + ahead]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            self._refuse("it ends too early")
        self._at += 1
        return character

    def _takes(self, wanted: str) -> bool:
        if self._peek(len(wanted)) != wanted:
            return False
        self._at += len(wanted)
        return True

    def _group_body(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            self._refuse("groups nested too deep")
        alternatives: list[list[_Node]] = [[]]
        while self._at < len(self._text) and self._peek() != ")":
            if self._takes("|"):
                alternatives.append([])
            else:
                alternatives[-1].append(self._repeated(self._atom(depth)))
        literal = "".join(part.literal or "" for part in alternatives[0])
        alike = len(alternatives) == 1 and all(
            part.literal is not None or (part.assertion and not part.inner) for part in alternatives[0]
        )
        return _Node(
            inner=alternatives,
            size=1 + sum(part.size for sequence in alternatives for part in sequence),
            shortest=min(sum(part.shortest for part in sequence) for sequence in alternatives),
            literal=literal if alike else None,
        )

    def _repeated(self, node: _Node) -> _Node:
        low, high = self._quantifier()
        if low is None:
            return node
        if node.assertion:
            self._refuse("an assertion that is repeated")
        node.low, node.high, node.literal = low, high, None
        node.size *= max(high or 0, low, 1)
        node.shortest *= low
        if node.size > _MOST_NODES:
            self._refuse("repetitions that multiply")
        if self._peek() in ("?", "+"):
            # Behind {n,m}, Oniguruma reads a + as another repetition, and behind {n} a ? as well.
            if self._take() and self._text[self._at - 2] == "}":
                self._refuse("a repetition of a repetition")
            node.possessive = self._text[self._at - 1] == "+"
        if self._peek() in ("*", "+", "?") and self._peek():
            self._refuse("a repetition of a repetition")
        return node

    def _quantifier(self) -> tuple[int | None, int | None]:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._takes(sign):
                return bounds
        if self._peek() != "{":
            return None, None
        end = self._text.find("}", self._at)
        parts = self._text[self._at + 1 : end].split(",") if end > 0 else []
        if len(parts) not in (1, 2) or not all(len(p) < 5 and set(p) <= set(string.digits) for p in parts):
            self._refuse("a brace that is no repetition")
        if not any(parts):
            self._refuse("a brace that is no repetition")
        self._at = end + 1
        low = int(parts[0] or 0)
        high = low if len(parts) == 1 else int(parts[1]) if parts[1] else None
        if high is not None and (high > 1000 or high < low):
            self._refuse("a repetition of more than 1000")
        return low, high

    def _atom(self, depth: int) -> _Node:
        character = self._take()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return _Node(chars=self._class(depth))
        if character == ".":
            return _Node(chars=CharacterSet(negated=True, spans=((10, 10),)))
        if character in "^$":
            return _Node(assertion=True, shortest=0)
        if character == "\\":
            return self._escape()
        if character in "*+?{":
            self._refuse("a repetition of nothing")
        return self._single(character)

    def _single(self, character: str) -> _Node:
        code = ord(character)
        unknown = self._either_case and character.isalpha()
        return _Node(chars=CharacterSet(spans=((code, code),), unknown=unknown), literal=character)

    def _group(self, depth: int) -> _Node:
        before, kind = self._either_case, ""
        if self._takes("?"):
            kind = next((k for k in ("i:", ":", "=", "!", "<=", "<!", ">") if self._takes(k)), "?")
            if kind == "?":
                self._refuse("a group that is not on the list")
            self._either_case |= kind == "i:"
        node = self._group_body(depth + 1)
        self._either_case = before
        if not self._takes(")"):
            self._refuse("a group without an end")
        if kind in ("=", "!", "<=", "<!"):
            node.assertion, node.shortest, node.literal = True, 0, None
        node.possessive = kind == ">"
        if kind == "i:":
            node.literal = None
        return node

    def _escape(self) -> _Node:
        character = self._take()
        if character in "bBAzZ":
            return _Node(assertion=True, shortest=0)
        found = self._escaped(character)
        if isinstance(found, CharacterSet):
            return _Node(chars=found)
        return self._single(found)

    def _escaped(self, character: str) -> str | CharacterSet:
        """A character, or the class that a letter names."""
        if character in "sdwSDW":
            return CharacterSet(names=frozenset(character.lower()), negated=character.isupper())
        if character in "pP":
            return self._property(character == "P")
        if character in "tnrfva":
            return {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}[character]
        if character == "x":
            return self._hexadecimal(2)
        if character == "u":
            return self._hexadecimal(4)
        if character.isalnum():
            self._refuse(f"\\{character}, which is not on the list")
        return character

    def _hexadecimal(self, width: int) -> str:
        if self._takes("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : end] if end > 0 else ""
            self._at = end + 1
        else:
            digits = self._peek(width)
            self._at += width
        if (
            not 1 <= len(digits) <= 6
            or not set(digits) <= set(string.hexdigits)
            or int(digits, 16) > 0x10FFFF
        ):
            self._refuse("a character by a number that is none")
        return chr(int(digits, 16))

    def _property(self, negated: bool) -> CharacterSet:
        if not self._takes("{"):
            self._refuse("a property without a name")
        end = self._text.find("}", self._at)
        name = self._text[self._at : end] if end > 0 else ""
        if not 0 < len(name) <= 40 or not name.strip("^").replace("_", "").isalnum():
            self._refuse("a property without a name")
        self._at = end + 1
        if name.startswith("^"):
            name, negated = name[1:], not negated
        return CharacterSet(names=frozenset((name,)), negated=negated)

    def _class(self, depth: int) -> CharacterSet:
        if depth > _DEEPEST:
            self._refuse("classes nested too deep")
        negated = self._takes("^")
        spans: list[Span] = []
        names: set[str] = set()
        unknown, empty = self._either_case, True
        while not self._takes("]"):
            empty = False
            if self._takes("[:"):
                end = self._text.find(":]", self._at)
                if end < 0:
                    self._refuse("a class without an end")
                names.add(self._text[self._at : end])
                self._at = end + 2
            elif self._takes("["):
                self._class(depth + 1)
                unknown = True
            elif self._takes("&&"):
                unknown = True
            else:
                unknown |= self._span(spans, names)
        if empty:
            self._refuse("a class of nothing")
        return CharacterSet(tuple(spans), frozenset(names), negated, unknown)

    def _span(self, spans: list[Span], names: set[str]) -> bool:
        """One character, span or named set of a class; whether it is another than it seems."""
        found = self._member()
        if isinstance(found, CharacterSet):
            names |= found.names
            return found.negated
        low = high = ord(found)
        if self._peek() == "-" and self._peek(2) not in ("-]", "-"):
            self._at += 1
            last = self._member()
            if isinstance(last, CharacterSet):
                return True
            high = ord(last)
        spans.append((low, high))
        return high < low

    def _member(self) -> str | CharacterSet:
        character = self._take()
        if character != "\\":
            return character
        character = self._take()
        return "\b" if character == "b" else self._escaped(character)
