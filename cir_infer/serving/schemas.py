"""What requests hold and answers are, as types: read strictly, and described by the OpenAPI document.

JSON is read by pydantic, which takes no further members and guesses no types.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar, Literal

from cir_infer.errors import shown
from cir_infer.foreign import read_json, unique_names
from cir_infer.serving.problems import Problem

__all__ = [
    "PARSED",
    "BatchAnswer",
    "BatchRequest",
    "ExplainAnswer",
    "ExplainRequest",
    "FieldsRequest",
    "HeatAnswer",
    "HitAnswer",
    "ItemAnswer",
    "ItemRequest",
    "ItemsAnswer",
    "ProblemAnswer",
    "SearchAnswer",
    "SearchRequest",
    "ShardItemsRequest",
    "VectorsAnswer",
    "VectorsRequest",
    "WhyAnswer",
    "WordAnswer",
    "check_excluded",
    "check_filter",
    "check_values",
    "parsed",
    "written",
]

PARSED = ("malformed-request", "invalid-argument", "too-large")
"""Problems of `parsed`."""
_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}
_LONGEST_FILTER = 65_536
_LONGEST_TEXT = 20_000
_MOST_EXCLUDED = 10_000
_MOST_VALUES = 200_000
_MOST_EXPLAINED = 10
_PLAIN = frozenset((int, float, str, bool))


@dataclass
class SearchRequest:
    """A query: an image (base64) or an item of the gallery, and what should change."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    text: str | list[str] | None = None
    item: str | None = None
    image: str | None = None
    k: int = 10
    where: str | dict[str, Any] | None = None
    exclude: list[str] = field(default_factory=list)
    exclude_reference: bool = False
    balance: dict[str, float] | None = None
    explain: int = 0

    def check(self) -> None:
        """Limits that hold before anything is computed.

        Raises:
            Problem: one is exceeded.
        """
        texts = [self.text] if isinstance(self.text, str) else self.text or []
        if sum(map(len, texts)) > _LONGEST_TEXT or len(texts) > 16:
            raise Problem(
                "invalid-argument", f"the text has more than {_LONGEST_TEXT:,} characters or 16 parts"
            )
        check_excluded(self.exclude)
        check_filter(self.where)
        if not 0 <= self.explain <= _MOST_EXPLAINED:
            raise Problem(
                "invalid-argument",
                f"explain is {shown(self.explain)}; expected how many of the hits, 0 to {_MOST_EXPLAINED}",
            )
        if self.item is not None and self.image is not None:
            raise Problem("invalid-argument", "an item and an image were given; expected one reference")


@dataclass
class BatchRequest:
    """Several queries, answered together."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    queries: list[SearchRequest]


@dataclass
class ExplainRequest(SearchRequest):
    """A query, and in `hit` the item of which it is asked why it has its score."""

    hit: str = ""


@dataclass
class HeatAnswer:
    """One term over the cells of a grid on an image; `map` and `rest` add up to `value`."""

    value: float
    rest: float
    map: list[list[float]]
    box: list[float]
    size: list[int]
    method: str


@dataclass
class WordAnswer:
    """What a word of the text is worth, in each term; `start` and `end` count the caption's code points."""

    text: str
    start: int
    end: int
    caption: int
    worth: dict[str, float]


@dataclass
class WhyAnswer:
    """Why an item has its score: maps over its image and over the reference, and the words.

    `unmoved` names the terms that no part of the reference moves.
    """

    id: str
    score: float
    terms: dict[str, HeatAnswer]
    reference: dict[str, HeatAnswer]
    unmoved: list[str]
    words: list[WordAnswer]
    balance: dict[str, float]


@dataclass
class ExplainAnswer(WhyAnswer):
    """The answer to a question why."""

    timing: dict[str, float]


@dataclass
class VectorsRequest:
    """Query vectors that were made elsewhere, by the model that made the rows; each is answered."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    vectors: list[list[float]]
    k: int = 10
    where: str | dict[str, Any] | None = None
    exclude: list[str] = field(default_factory=list)
    metric: Literal["cosine", "dot"] = "cosine"

    def check(self, most: int) -> None:
        """Limits that hold before anything is computed.

        Args:
            most: vectors.

        Raises:
            Problem: one is exceeded.
        """
        if not 1 <= len(self.vectors) <= most:
            raise Problem("invalid-argument", f"{len(self.vectors)} vectors; expected 1 to {most}")
        check_excluded(self.exclude)
        check_filter(self.where)


@dataclass
class ItemRequest:
    """What an item is to be: image (base64) and metadata. Without an image, it keeps the one it has."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    image: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass
class FieldsRequest:
    """Fields of an item's metadata that change: null takes one away, others stay."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    metadata: dict[str, Any]


@dataclass
class ShardItemsRequest:
    """The ids of items that a shard may hold."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    ids: list[str]


@dataclass
class HitAnswer:
    """One item in the answer to a query. `image` is the address of its picture."""

    id: str
    rank: int
    score: float
    terms: dict[str, float]
    metadata: dict[str, Any]
    image: str | None


@dataclass
class SearchAnswer:
    """The answer to a query: hits, best first; `timing` in milliseconds, by stage.

    `explanations` says why of as many of the first hits as were asked for, or why it cannot.
    """

    hits: list[HitAnswer]
    unknown_words: list[str]
    reference_id: str | None
    timing: dict[str, float]
    explanations: list[WhyAnswer | ProblemAnswer] = field(default_factory=list)


@dataclass
class ProblemAnswer:
    """Why there is no answer (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None


@dataclass
class BatchAnswer:
    """The answers to several queries, in order; a problem in place of each that has none."""

    answers: list[SearchAnswer | ProblemAnswer]
    timing: dict[str, float]


@dataclass
class VectorsAnswer:
    """The answers to several vectors, in order."""

    answers: list[list[HitAnswer]]
    timing: dict[str, float]


@dataclass
class ItemAnswer:
    """An item of the gallery."""

    id: str
    metadata: dict[str, Any]
    image: str | None


@dataclass
class ItemsAnswer:
    """Items of the gallery; `after` continues the list, and is null at its end."""

    items: list[ItemAnswer]
    after: str | None
    matching: int


def check_excluded(ids: list[str]) -> None:
    """Refuse too many.

    Raises:
        Problem: there are.
    """
    if len(ids) > _MOST_EXCLUDED:
        raise Problem("invalid-argument", f"exclude has {len(ids):,} ids; at most {_MOST_EXCLUDED:,}")


def check_filter(where: str | dict[str, Any] | None) -> None:
    """Refuse one that is too long.

    Raises:
        Problem: it is.
    """
    if where and len(where if isinstance(where, str) else json.dumps(where)) > _LONGEST_FILTER:
        raise Problem("invalid-argument", f"the filter has more than {_LONGEST_FILTER:,} characters")


def check_values(body: bytes) -> None:
    """Refuse JSON of too many values before it is read.

    Two bytes of JSON can be a list, of hundreds of bytes, so a limit on bytes alone limits no memory.

    Raises:
        Problem: there are too many.
    """
    # Each value but the first comes behind one of these, so this counts no fewer than there are.
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise Problem("too-large", f"the JSON has more than {_MOST_VALUES:,} values; send fewer at a time")


def _check_names(body: bytes) -> None:
    """Refuse JSON with an object that has a name twice: the first of two conditions would be lost.

    Raises:
        Problem: it has.
    """
    from pydantic_core import from_json

    # Each member has a colon of its own, so without one more than there are members no two have one name.
    if body.count(b":") > _members(from_json(body)):
        try:
            read_json(body, object_pairs_hook=unique_names)
        except ValueError as error:
            raise Problem("malformed-request", f"the body cannot be read ({shown(error, 120)})") from None


def _members(value: Any) -> int:
    """How many members the objects in a value have."""
    count, rest = 0, [value]
    while rest:
        one = rest.pop()
        if type(one) is dict:
            count += len(one)
            rest += one.values()
        elif type(one) is list and not _PLAIN.issuperset(map(type, one)):
            rest += one
    return count


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def written(value: Any) -> bytes:
    """An answer as JSON: one of the types above, or plain values. What is no finite number becomes null.

    Of a type whose fields are known it takes half the time of one that has to be looked at.
    """
    kind = type(value)
    if not is_dataclass(kind):
        from pydantic_core import to_json

        return to_json(value, inf_nan_mode="null")
    told: bytes = _adapter(kind).serializer.to_json(
        value, warnings=False
    )  # explanations come as plain values
    return told


def parsed(kind: Any, body: bytes) -> Any:
    """A JSON body as one of the types above.

    Raises:
        Problem: it is no JSON, or not of the type; `errors` says where. Or it holds too many values, or an
            object that has a name twice.
    """
    check_values(body)
    try:
        found = _adapter(kind).validate_json(body)
    except ValueError as error:
        wrong: Any = error  # pydantic's ValidationError
        faults = wrong.errors(include_url=False, include_context=False, include_input=False)
        if faults and faults[0]["type"] == "json_invalid":
            raise Problem(
                "malformed-request", f"the body is no JSON ({shown(faults[0]['msg'], 80)})"
            ) from None
        errors = [
            {"at": "/".join(map(str, entry["loc"]))[:200], "detail": entry["msg"][:200]}
            for entry in faults[:20]
        ]
        first = errors[0]
        raise Problem(
            "invalid-argument", f"{first['at'] or 'the body'}: {first['detail']}", errors=errors
        ) from None
    _check_names(body)
    return found
