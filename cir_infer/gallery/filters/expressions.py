"""Filter expressions as text, for the command line.

    category = dress and price < 50
    brand in (acme, "Tom & Co") or not (colour prefix "light ")
    size.height >= 3.5 and note is null and tags != "last season"

Grammar, lowest precedence first; keywords in any case:

    expression := term { "or" term }
    term       := factor { "and" factor }
    factor     := "not" factor | "(" expression ")" | comparison
    comparison := field ( "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "prefix" ) value
                | field [ "not" ] "in" "(" [ value { "," value } ] ")"
                | field "is" [ "not" ] "null"
    field      := word | quoted
    value      := number | "true" | "false" | time | word | quoted
    number     := [ "+" | "-" ] digits [ "." digits ] [ "e" [ "+" | "-" ] digits ]
    time       := [ date "T" ] hours ":" minutes [ ":" seconds [ "." digits ] ] [ zone ]
    zone       := "Z" | ( "+" | "-" ) hours ":" minutes

A word is letters and digits of any script, `_`, `.`, `-` and `+`, so a date such as 2024-05-17 is
one; anything else, and text that reads like a number, a time or a keyword, goes in single or double
quotes, where a backslash escapes the next character. Behind `prefix` a number or a time is the text
that stands there. Times are brought into the form of stored ones (see `values`); text in quotes is
taken as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cir_infer.errors import UsageError, shown
from cir_infer.gallery.filters import conditions
from cir_infer.gallery.metadata.values import Scalar, UnfitError, moment, number_of_text

__all__ = ["parse_text"]

MAX_TEXT = 4_000_000
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<symbol><=|>=|!=|==|[=<>(),])"""
    r"""|(?P<time>(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt])?[0-9]{2}:[0-9]{2}[\w.:+\-]*)|(?P<word>[\w.+\-]+))""",
    re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_KEYWORDS = ("and", "or", "not", "in", "is", "null", "prefix", "true", "false")


class _Token(NamedTuple):
    kind: str  # "quoted", "symbol", "word", "time", "keyword" or "end"
    text: str
    at: int


def parse_text(text: str) -> conditions.Filter:
    """Read a line of text, see the grammar above.

    Raises:
        UsageError: it does not follow the grammar; the message says where.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"where is {len(text):,} characters long; expected at most {MAX_TEXT:,}")
    parser = _Parser(text)
    tree = parser.expression(0)
    if parser.next.kind != "end":
        parser.fail("and, or, or the end")
    return tree


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._budget = conditions.Budget()
        self.next = self._scan()

    def fail(self, expected: str) -> None:
        found = "the end" if self.next.kind == "end" else shown(self.next.text, 60)
        raise UsageError(f"where: expected {expected} at character {self.next.at + 1}, found {found}")

    def expression(self, depth: int) -> conditions.Filter:
        parts = [self._term(depth)]
        while self._accept("keyword", "or"):
            parts.append(self._term(depth))
        self._budget.take("groups", len(parts) > 1)
        return conditions.any_of(parts)

    def _term(self, depth: int) -> conditions.Filter:
        parts = [self._factor(depth)]
        while self._accept("keyword", "and"):
            parts.append(self._factor(depth))
        self._budget.take("groups", len(parts) > 1)
        return conditions.all_of(parts)

    def _factor(self, depth: int) -> conditions.Filter:
        if depth > conditions.MAX_DEPTH:
            raise UsageError(f"where is nested more than {conditions.MAX_DEPTH} deep")
        if self._accept("keyword", "not"):
            self._budget.take("groups")
            return conditions.negated(self._factor(depth + 1))
        if self._accept("symbol", "("):
            inner = self.expression(depth + 1)
            self._expect("symbol", ")")
            return inner
        return self._comparison()

    def _comparison(self) -> conditions.Filter:
        if self.next.kind not in ("word", "quoted") or not self.next.text:
            self.fail("a field's name")
        field = self._take().text
        token = self._take()
        if token.kind == "symbol" and token.text in ("=", "==", "!=", "<", "<=", ">", ">="):
            return conditions.comparison(field, token.text.replace("==", "="), self._value(), self._budget)
        if token.kind == "keyword":
            if token.text == "prefix":
                # 2024 and 09:30 begin texts as well as any word does.
                literal = self.next.kind in ("word", "time")
                value = self._take().text if literal else self._value()
                return conditions.comparison(field, "prefix", value, self._budget)
            if token.text == "is":
                negated = self._accept("keyword", "not")
                self._expect("keyword", "null")
                return conditions.comparison(field, "null", not negated, self._budget)
            if token.text == "in":
                return conditions.comparison(field, "in", self._values(), self._budget)
            if token.text == "not":
                self._expect("keyword", "in")
                return conditions.comparison(field, "not in", self._values(), self._budget)
        self.next = token
        self.fail(f"an operator after {shown(field, 40)}")
        raise AssertionError  # fail always raises

    def _values(self) -> list[Scalar]:
        self._expect("symbol", "(")
        values: list[Scalar] = []
        if self._accept("symbol", ")"):
            return values
        values.append(self._value())
        while self._accept("symbol", ","):
            values.append(self._value())
        self._expect("symbol", ")")
        return values

    def _value(self) -> Scalar:
        if self.next.kind == "keyword" and self.next.text in ("true", "false"):
            return self._take().text == "true"
        if self.next.kind not in ("word", "time", "quoted"):
            self.fail("a value")
        token = self._take()
        try:
            if token.kind == "time":
                return moment(token.text)
            if token.kind == "word" and _NUMBER.fullmatch(token.text):
                return number_of_text(token.text)
        except UnfitError as error:
            raise UsageError(f"where: the value at character {token.at + 1} {error}") from None
        return token.text

    def _accept(self, kind: str, text: str) -> bool:
        if self.next.kind == kind and self.next.text == text:
            self._take()
            return True
        return False

    def _expect(self, kind: str, text: str) -> None:
        if not self._accept(kind, text):
            self.fail(repr(text))

    def _take(self) -> _Token:
        token, self.next = self.next, self._scan()
        return token

    def _scan(self) -> _Token:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            rest = self._text[self._at :].lstrip()
            at = len(self._text) - len(rest)
            if rest:
                raise UsageError(
                    f"where: found {shown(rest[:20])} at character {at + 1}; put text with other characters "
                    "than letters, digits, _ . - into quotes"
                )
            return _Token("end", "", at)
        self._at = match.end()
        kind = str(match.lastgroup)
        text = match[kind]
        if kind == "quoted":
            return _Token(kind, re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL), match.start(kind))
        if kind == "word" and text.lower() in _KEYWORDS:
            return _Token("keyword", text.lower(), match.start(kind))
        return _Token(kind, text, match.start(kind))
