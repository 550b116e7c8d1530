"""Questions and answers of shards as JSON: arrays are base64 of little-endian bytes, so every bit arrives.

Both ends read strictly: what does not fit is an error before anything of its size is made.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cir_infer.errors import CirError, UsageError, shown
from cir_infer.foreign import read_json, unique_names
from cir_infer.gallery.filters.filters import Where, sendable
from cir_infer.gallery.snapshot import Item
from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.searching.found import Found, Held, References
from cir_infer.shards.shard import About

__all__ = [
    "MOST_HELD",
    "MOST_HITS",
    "Asked",
    "held_in_parts",
    "read_about",
    "read_found",
    "read_held",
    "read_question",
    "told_about",
    "told_found",
    "told_held",
    "told_question",
]

N = TypeVar("N", bound=np.generic)
MOST_HELD = 256
"""Items of a question together."""
_MOST_TOLD = 16 << 20
"""Characters of an answer about items behind which no other begins: each may have a million of metadata."""
MOST_HITS = 100_000
"""Of all queries of a question together: an answer of millions takes gigabytes where it is put together."""
_MOST_QUERIES = 4096
_MOST_LOOSER = 1000
_QUESTION = (
    *("names", "shape", "numerators", "weights", "k", "where", "exclude"),
    *("references", "looser", "tokens"),
)
_ANSWER = (
    *("shape", "scores", "rows", "terms", "tokens", "same", "items"),
    *("size", "fingerprint", "generation"),
)
_ABOUT = (
    *("identity", "fingerprint", "dimension", "tokens_per_item", "size"),
    *("origin", "strayed", "written_by"),
)
_HELD = ("item", "dtype", "shape", "row", "scales", "fingerprint")
_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


class Asked(NamedTuple):
    """A question, as `Shard.search` takes it."""

    terms: QueryTerms
    k: int
    where: str | dict[str, Any] | None
    exclude: list[str]
    references: References


def told_question(
    terms: QueryTerms, k: int, where: Where | None, exclude: Sequence[str], references: References
) -> bytes:
    """A question as JSON.

    Raises:
        UsageError: the filter is malformed.
    """
    said = {
        "names": list(terms.names),
        "shape": list(terms.numerators.shape),
        "numerators": _text(terms.numerators),
        "weights": None if terms.weights is None else _text(terms.weights),
        "k": k,
        "where": None if where is None else sendable(where),
        "exclude": list(exclude),
        "references": [None if row is None else _text(row) for row in references.rows],
        "looser": references.looser,
        "tokens": next((len(row) for row in references.rows if row is not None and row.ndim == 2), 1),
    }
    return json.dumps(said, allow_nan=False).encode()


def read_question(body: bytes) -> Asked:
    """The inverse.

    Raises:
        UsageError: it is none.
    """
    try:
        said = _fields(body, _QUESTION, UsageError)
        queries, count, dimension = (_whole(value, 1, 1 << 20) for value in _list(said["shape"], 3))
        if queries > _MOST_QUERIES:
            raise UsageError(f"{queries} queries; a shard takes {_MOST_QUERIES} at a time")
        shape = (queries, count, dimension)
        weights = None if said["weights"] is None else _array(said["weights"], np.float32, shape)
        names = tuple(_text_of(name) for name in _list(said["names"], count))
        terms = QueryTerms(_array(said["numerators"], np.float32, shape), weights, names)
        where, tokens = said["where"], _whole(said["tokens"], 1, 1 << 16)
        if not isinstance(where, (str, dict, type(None))):
            raise UsageError(f"where is {shown(where)}; expected a filter")
        row = (dimension,) if tokens == 1 else (tokens, dimension)
        given = _list(said["references"])
        rows = [None if one is None else _array(one, np.float32, row) for one in given]
        if len(rows) not in (0, queries):
            raise UsageError(f"{len(rows):,} references for {queries:,} queries")
        references = References(rows, _factor(said["looser"]))
        exclude = [_text_of(item) for item in _list(said["exclude"])]
        return Asked(terms, _whole(said["k"], 1, 1 << 31), where, exclude, references)
    except UsageError:
        raise
    except CirError as error:  # terms that are not finite, say
        raise UsageError(str(error)) from error


def told_found(found: Found) -> dict[str, Any]:
    """An answer as plain values."""
    top = found.top
    return {
        "shape": list(top.terms.shape),
        "scores": _text(top.scores),
        "rows": _text(top.rows),
        "terms": _text(top.terms),
        "tokens": None if top.tokens is None else _text(top.tokens),
        "same": _text(found.same),
        "items": [[[item.id, item.metadata, item.source] for item in items] for items in found.items],
        "size": found.size,
        "fingerprint": found.fingerprint,
        "generation": found.generations[0],
    }


def read_found(body: bytes, queries: int, terms: int, k: int) -> Found:
    """The inverse.

    Args:
        body: JSON.
        queries: that were asked.
        terms: of each.
        k: hits that were asked for.

    Raises:
        CirError: it is no answer to that.
    """
    said = _fields(body, _ANSWER, CirError)
    shape = tuple(_whole(value, 0, 1 << 31) for value in _list(said["shape"], 3))
    if shape[0] != queries or shape[2] != terms or not 1 <= shape[1] <= k:
        raise CirError(f"an answer of shape {shape} to {queries} queries of {terms} terms and k={k}")
    wide = shape[:2]
    top = TopK(
        _array(said["scores"], np.float32, wide),
        _array(said["rows"], np.int64, wide),
        _array(said["terms"], np.float32, shape),
        None if said["tokens"] is None else _array(said["tokens"], np.int32, shape),
    )
    items = [[_item(one) for one in _list(those)] for those in _list(said["items"], queries)]
    _check_top(top, [len(those) for those in items])
    return Found(
        top,
        items,
        _array(said["same"], np.bool_, wide),
        _whole(said["size"], max(map(len, items), default=0), 1 << 62),
        None if said["fingerprint"] is None else _text_of(said["fingerprint"]),
        (_whole(said["generation"], 0, 1 << 62),),
    )


def _check_top(top: TopK, items: list[int]) -> None:
    """What every scorer's answer is: best first, with nothing in the places behind the last row.

    Raises:
        CirError: it is none.
    """
    there = top.rows >= 0
    if there.sum(axis=1).tolist() != items or (there[:, 1:] > there[:, :-1]).any():
        raise CirError("an answer whose items do not fit its rows")
    kept = np.isfinite(top.scores) & np.isfinite(top.terms).all(axis=2)
    falling = top.scores[:, 1:] <= top.scores[:, :-1]
    if not (np.where(there, kept, np.isneginf(top.scores)).all() and falling.all()):
        raise CirError("an answer whose scores are not those of rows, best first")


def told_held(items: Sequence[Held | None]) -> dict[str, Any]:
    """The first items as plain values: all, unless that were a very long answer."""
    told: list[dict[str, Any] | None] = []
    size = 0
    for held in items:
        if size > _MOST_TOLD:
            break
        told.append(None if held is None else _told_item(held))
        size += len(json.dumps(told[-1]))
    return {"items": told}


def held_in_parts(
    items: Sequence[str], ask: Callable[[list[str], float | None], list[Held | None]], timeout: float | None
) -> list[Held | None]:
    """Items, where an answer may be about the first of those asked for alone.

    Args:
        items: their ids.
        ask: gives what an answer says about the first of some, of one at least, in so many seconds.
        timeout: for all of it.
    """
    began = time.monotonic()
    found: list[Held | None] = []
    while len(found) < len(items):
        left = None if timeout is None else began + timeout - time.monotonic()
        found += ask(list(items[len(found) :]), left)
    return found


def _told_item(held: Held) -> dict[str, Any]:
    item, rows = held.told(), held.rows
    return {
        "item": [item.id, item.metadata, item.source],
        "dtype": str(rows.dtype),
        "shape": list(rows.blocks[0].shape),
        "row": _text(rows.blocks[0]),
        "scales": None if rows.scales is None else _text(rows.scales[0]),
        "fingerprint": held.fingerprint,
    }


def read_held(body: bytes, count: int) -> list[Held | None]:
    """The inverse.

    Args:
        body: the answer.
        count: how many items were asked for.

    Returns:
        The first of them, one at least.

    Raises:
        CirError: it is none.
    """
    items = _list(_fields(body, ("items",), CirError)["items"])
    if not 1 <= len(items) <= count:
        raise CirError(f"{len(items):,} items; expected 1 to {count:,}")
    return [None if said is None else _held(_checked(said, _HELD, CirError)) for said in items]


def _held(said: dict[str, Any]) -> Held:
    item, shape = _item(said["item"]), tuple(_whole(v, 1, 1 << 20) for v in _list(said["shape"]))
    if _text_of(said["dtype"]) not in _DTYPES or len(shape) not in (2, 3) or shape[0] != 1:
        raise CirError(f"a row of {shown(said['dtype'])} {shown(shape)}")
    block = _array(said["row"], _DTYPES[said["dtype"]], shape)
    scales = None if said["scales"] is None else (_array(said["scales"], np.float32, shape[:-1]),)
    fingerprint = None if said["fingerprint"] is None else _text_of(said["fingerprint"])
    return Held(Rows((block,), scales), lambda: item, fingerprint)


def told_about(about: About) -> dict[str, Any]:
    """What a shard is, as plain values. Where it is, whoever asks knows better."""
    said = about._asdict() | {"written_by": sorted(about.written_by)}
    del said["place"]
    return said


def read_about(body: bytes, place: str) -> About:
    """The inverse.

    Raises:
        CirError: it is none.
    """
    said = _fields(body, _ABOUT, CirError)
    if not isinstance(said["strayed"], bool):
        raise CirError(f"strayed is {shown(said['strayed'])}; expected true or false")
    return About(
        place,
        _text_of(said["identity"]),
        None if said["fingerprint"] is None else _text_of(said["fingerprint"]),
        _whole(said["dimension"], 1, 1 << 20),
        _whole(said["tokens_per_item"], 1, 1 << 16),
        _whole(said["size"], 0, 1 << 62),
        None if said["origin"] is None else _text_of(said["origin"]),
        said["strayed"],
        frozenset(_text_of(name) for name in _list(said["written_by"])),
    )


# ---- values


def _text(array: npt.NDArray[Any]) -> str:
    data = np.ascontiguousarray(array)
    return base64.b64encode(data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def _factor(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= _MOST_LOOSER:
        raise UsageError(f"looser is {shown(value)}; expected 1 to {_MOST_LOOSER}")
    return float(value)


def _array(text: Any, dtype: type[N], shape: tuple[int, ...]) -> npt.NDArray[N]:
    try:
        data = base64.b64decode(_text_of(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"an array is no base64 ({shown(error, 60)})") from error
    little = np.dtype(dtype).newbyteorder("<")
    expected = little.itemsize
    for size in shape:
        expected *= size
    if len(data) != expected:
        raise UsageError(f"an array of {len(data):,} bytes; expected {expected} for shape {shape}")
    if dtype is np.bool_:
        return np.frombuffer(data, np.uint8).reshape(shape).astype(dtype)
    return np.frombuffer(data, little).reshape(shape).astype(dtype)


def _fields(body: bytes, names: Sequence[str], kind: type[CirError]) -> dict[str, Any]:
    try:
        said = read_json(body, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise kind(f"no JSON ({shown(error, 80)})") from error
    return _checked(said, names, kind)


def _checked(said: Any, names: Sequence[str], kind: type[CirError]) -> dict[str, Any]:
    if not isinstance(said, dict) or set(said) != set(names):
        raise kind(f"{shown(said, 200)}; expected the fields {', '.join(names)}")
    return said


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise UsageError(f"{shown(value)}; expected a list{'' if length is None else f' of {length}'}")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{shown(value)}; expected a whole number of {least} to {most}")
    return value


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{shown(value)}; expected a text")
    return value


def _item(value: Any) -> Item:
    name, metadata, source = _list(value, 3)
    if not isinstance(metadata, dict) or not isinstance(source, (str, type(None))):
        raise UsageError(f"{shown(value)}; expected an id, metadata and a source")
    return Item(_text_of(name), metadata, source)
