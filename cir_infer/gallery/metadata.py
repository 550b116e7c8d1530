"""Metadata of an item: what is accepted, how it is stored, what of it can be filtered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cir_infer.errors import GalleryError, UsageError, shown

__all__ = ["MAX_TEXT", "Encoded", "Scalar", "attributes_of", "checked_ids", "decode", "encode"]

Scalar = str | int | float
"""A value that a filter can compare; truth values are the integers 0 and 1."""

MAX_TEXT = 1 << 20
"""Longest metadata of one item as JSON, in characters."""
_MAX_ID = 4096
_MAX_DEPTH = 16
_INT64 = 1 << 63


def checked_ids(ids: Sequence[str]) -> list[str]:
    """The ids as a list of distinct, non-empty strings.

    Raises:
        UsageError: ids is itself a string.
        GalleryError: an id is not a string, is empty, too long, cannot be stored, or comes twice.
    """
    if isinstance(ids, (str, bytes)):
        raise UsageError("ids is one string; expected a sequence of strings, one for each item")
    checked = list(ids)
    for item in checked:
        if not isinstance(item, str) or not item or len(item) > _MAX_ID or not _storable(item):
            raise GalleryError(
                f"an id is {shown(item, 80)}; expected a non-empty string of at most {_MAX_ID} characters"
            )
    if len(set(checked)) != len(checked):
        seen: set[str] = set()
        twice = next(item for item in checked if item in seen or seen.add(item))  # type: ignore[func-returns-value]
        raise GalleryError(f"id {shown(twice)} comes twice in one call; ids name items, give each its own")
    return checked


class Encoded(NamedTuple):
    """Metadata as it is stored: JSON text (None where there is none), and what of it can be filtered."""

    text: str | None
    attributes: Sequence[tuple[str, Scalar]]


def encode(metadata: Mapping[str, Any] | None, item: str) -> Encoded:
    """Metadata as it is stored.

    Raises:
        GalleryError: it is no mapping of strings to JSON values; the message names the item.
    """
    if not metadata:
        return Encoded(None, ())
    if not isinstance(metadata, Mapping):
        raise GalleryError(
            f"metadata of id {shown(item)} is {type(metadata).__name__}; expected a dictionary"
        )
    try:
        attributes = list(attributes_of(metadata))
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise GalleryError(f"metadata of id {shown(item)} cannot be stored: {error}") from None
    if len(text) > MAX_TEXT:
        raise GalleryError(
            f"metadata of id {shown(item)} is {len(text):,} characters of JSON; expected at most {MAX_TEXT:,}"
        )
    return Encoded(text, attributes)


def decode(text: str | None) -> dict[str, Any]:
    """The inverse of `encode`; an empty dictionary where there is none."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:  # a damaged file may give a number for a text
        raise GalleryError(f"stored metadata is damaged ({error}); run verify") from error
    if not isinstance(value, dict):
        raise GalleryError("stored metadata is damaged (not an object); run verify")
    return value


def attributes_of(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Scalar]]:
    """The (field, value) pairs that filters see.

    A nested object gives dotted fields ("size.height"), a list one pair for each element, None
    and empty containers nothing.

    Raises:
        TypeError, ValueError: something in it is no JSON value, or a number has no exact place.
    """
    for name, value in metadata.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"a field is named {shown(name, 60)}; expected a non-empty string")
        if not _storable(name):
            raise ValueError(f"field {shown(name, 60)} is not valid Unicode")
        yield from _flatten(name, value, 0)


def _flatten(name: str, value: Any, depth: int) -> Iterator[tuple[str, Scalar]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"field {shown(name, 60)} is nested more than {_MAX_DEPTH} deep")
    if value is None:
        return
    if isinstance(value, str):
        if not _storable(value):
            raise ValueError(f"field {shown(name)} holds text that is not valid Unicode")
        yield name, str(value)
    elif isinstance(value, (bool, int)):
        if not -_INT64 <= value < _INT64:
            raise ValueError(f"field {shown(name)} is {value}; expected a whole number of at most 64 bits")
        yield name, int(value)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"field {shown(name)} is {value}; expected a finite number")
        yield name, float(value)
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _flatten(name, element, depth + 1)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            if not isinstance(key, str):
                raise TypeError(f"field {shown(name)} holds the key {shown(key, 60)}; expected strings")
            yield from _flatten(f"{name}.{key}", element, depth + 1)
    else:
        raise TypeError(
            f"field {shown(name)} is {type(value).__name__}; expected text, a number, true, false or null"
        )


def _storable(text: str) -> bool:
    """Whether UTF-8 can carry it; lone surrogates, as from odd file names, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
