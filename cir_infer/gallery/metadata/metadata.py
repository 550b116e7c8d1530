"""Metadata of an item: what is accepted, how it is stored, what of it can be filtered."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.metadata.values import Scalar, UnfitError, is_missing, plain_text, scalar, storable
from cir_infer.inputs.arrays import array_of

__all__ = [
    "MAX_DEPTH",
    "MAX_FIELD",
    "MAX_TEXT",
    "Encoded",
    "MetadataError",
    "attributes_of",
    "decode",
    "encode",
]

_log = logging.getLogger(__name__)

MAX_TEXT = 1 << 20
"""Longest metadata of one item as JSON, in characters."""
MAX_FIELD = 4096
"""Longest name of a field, dots included, in characters."""
MAX_DEPTH = 16
"""Lists and dictionaries inside one another."""
_INT64 = 1 << 63
_INFINITY = float("inf")
_MAX_TOLD = 100

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
_told: set[str] = set()  # fields of which was said that a missing value is taken as absent


class MetadataError(GalleryError):
    """Metadata that no gallery stores."""


class Encoded(NamedTuple):
    """Metadata as it is stored: JSON text (None where there is none), and what of it can be filtered."""

    text: str | None
    attributes: list[tuple[str, Scalar]]


def encode(metadata: Mapping[str, Any] | None, item: str) -> Encoded:
    """Metadata as it is stored: plain JSON, whatever types it came in (the table is in docs/gallery.md).

    What is missing (NaN, NaT, pandas' NA) is left out, in a list it becomes null; the log says so once
    for each field.

    Raises:
        MetadataError: it is no mapping of text to such values; the message names the item and the field.
    """
    if metadata is None or is_missing(metadata):
        return Encoded(None, [])
    if not isinstance(metadata, Mapping):
        raise MetadataError(
            f"metadata of id {shown(item)} is {shown(metadata, 60)}, of type {type(metadata).__name__}; "
            "expected a dictionary or None"
        )
    try:
        reader = _Reader(item)
        plain = reader.mapping(metadata, "", 0)
        if reader.dotted:
            _check_paths(plain)
        attributes = list(attributes_of(plain))
        text = _JSON.encode(plain)
    except UnfitError as error:
        raise MetadataError(f"metadata of id {shown(item)} cannot be stored: {error}") from None
    except GalleryError:
        raise
    except Exception as error:  # a stranger's dictionary or list may raise anything while it is read
        raise MetadataError(
            f"metadata of id {shown(item)} cannot be stored: reading it failed with "
            f"{type(error).__name__}: {shown(error, 200)}"
        ) from error
    if len(text) > MAX_TEXT:
        raise MetadataError(_too_long(item))
    return Encoded(text if plain else None, attributes)


def decode(text: str | None) -> dict[str, Any]:
    """The inverse of `encode`; an empty dictionary where there is none."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise GalleryError(f"stored metadata is damaged ({shown(error)}); run verify") from error
    if not isinstance(value, dict):
        raise GalleryError("stored metadata is damaged (not an object); run verify")
    return value


def attributes_of(metadata: Mapping[str, Any]) -> list[tuple[str, Scalar]]:
    """The (field, value) pairs that filters see in metadata as it was stored.

    A nested object gives dotted fields ("size.height"), a list one pair for each element, None
    and empty containers nothing.

    Raises:
        GalleryError: it is not what `encode` makes, so it is damaged.
    """
    out: list[tuple[str, Scalar]] = []
    for name, value in metadata.items():
        _flatten(name, value, 0, out)
    return out


def _flatten(name: str, value: Any, depth: int, out: list[tuple[str, Scalar]]) -> None:
    if _is_simple(value):
        if value is not None:
            out.append((name, int(value) if type(value) is bool else value))
    elif depth >= MAX_DEPTH or not isinstance(value, (list, dict)):
        raise _damaged(name, value)
    elif isinstance(value, list):
        for element in value:
            _flatten(name, element, depth + 1, out)
    else:
        for key, element in value.items():
            _flatten(f"{name}.{key}", element, depth + 1, out)


def _is_simple(value: Any) -> bool:
    """Whether it is a single value just as JSON and the index have it."""
    kind = type(value)
    if kind is str:
        return storable(value)
    if kind is int:
        return -_INT64 <= value < _INT64  # type: ignore[no-any-return]
    if kind is float:
        return -_INFINITY < value < _INFINITY  # type: ignore[no-any-return]
    return kind is bool or value is None


def _damaged(name: str, value: object) -> GalleryError:
    return GalleryError(
        f"stored metadata is damaged (field {shown(name, 60)} is {shown(value, 60)}); run verify"
    )


def _too_long(item: str) -> str:
    return f"metadata of id {shown(item)} is too long; expected at most {MAX_TEXT:,} characters of JSON"


class _Reader:
    """Reads the metadata of one item; its size and depth are bounded before it is copied."""

    def __init__(self, item: str) -> None:
        self._item = item
        self._room = MAX_TEXT
        self.dotted = False

    def mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> dict[str, Any]:
        """A dictionary as JSON has it; `name` is the field that holds it, empty at the top."""
        out: dict[str, Any] = {}
        for key, element in value.items():
            if not isinstance(key, str):
                raise UnfitError(f"{_where(name)} has the key {shown(key, 60)}; expected strings")
            key = key if type(key) is str else plain_text(key)
            path = f"{name}.{key}" if name else key
            if not path:
                raise UnfitError("a field is named ''; expected a non-empty string")
            if len(path) > MAX_FIELD:
                raise UnfitError(
                    f"the name of field {shown(path, 60)} is longer than {MAX_FIELD:,} characters"
                )
            if not storable(key):
                raise UnfitError(f"the name of field {shown(path, 60)} is not valid Unicode")
            if key in out:
                raise UnfitError(f"field {shown(path, 60)} is there twice")
            self.dotted = self.dotted or "." in key
            self._take(len(key) + 4)
            if _is_simple(element):
                out[key] = element
                if type(element) is str:
                    self._take(len(element))
            elif is_missing(element):
                _say_missing(path, self._item)
            else:
                out[key] = self._value(element, path, depth)
        return out

    def _value(self, value: Any, name: str, depth: int) -> Any:
        if _is_simple(value):
            if type(value) is str:
                self._take(len(value))
            return value
        if hasattr(type(value), "__array__") and not isinstance(value, np.generic):
            value = _array(value)
        elements = _elements(value)
        if elements is None and not isinstance(value, Mapping):
            return self._scalar(value, name)
        if depth >= MAX_DEPTH:
            raise UnfitError(f"field {shown(name, 60)} is nested more than {MAX_DEPTH} deep, or holds itself")
        if elements is None:
            return self.mapping(value, name, depth + 1)
        out: list[Any] = []
        for element in elements:
            self._take(2)
            if is_missing(element):
                _say_missing(name, self._item)
                out.append(None)
            else:
                out.append(self._value(element, name, depth + 1))
        return sorted(out, key=_order) if isinstance(value, Set) else out

    def _scalar(self, value: Any, name: str) -> Any:
        try:
            plain = scalar(value)
        except UnfitError as error:
            raise UnfitError(f"field {shown(name, 60)} {error}") from None
        if type(plain) is str:
            self._take(len(plain))
        elif type(plain) is int and not -_INT64 <= plain < _INT64:
            raise UnfitError(
                f"field {shown(name, 60)} is {shown(plain, 60)}; "
                "expected a whole number of at most 64 bits, or text"
            )
        elif type(plain) is float and plain in (_INFINITY, -_INFINITY):
            raise UnfitError(f"field {shown(name, 60)} is {plain}; expected a finite number")
        return plain

    def _take(self, characters: int) -> None:
        self._room -= characters
        if self._room < 0:
            raise MetadataError(_too_long(self._item))


def _where(name: str) -> str:
    return f"field {shown(name, 60)}" if name else "the dictionary"


def _elements(value: Any) -> Any:
    """What to iterate over where a value is a list of some kind, else None."""
    kind = type(value)
    if kind in (str, int, float, bool, dict) or value is None:
        return None
    if kind in (list, tuple):
        return value
    if isinstance(value, str | bytes | bytearray | memoryview | np.generic | Mapping):
        return None
    return value if isinstance(value, Sequence | Set | np.ndarray) else None


def _array(value: Any) -> Any:
    """An array of NumPy, a column of pandas or a tensor as an array, one without dimensions as its value."""
    array = array_of(value)  # what is masked in it is missing where its turn comes
    if array.ndim:
        return array
    only = array[()]
    return None if is_missing(only) else only


def _order(value: Any) -> tuple[int, float, str]:
    """An order for the elements of a set, which has none."""
    if isinstance(value, str):
        return 1, 0, value
    if isinstance(value, (int, float)):
        return 0, value, ""
    return 2, 0, json.dumps(value)


def _check_paths(metadata: Mapping[str, Any]) -> None:
    """Refuse two ways to the same dotted field: `{"a.b": 1, "a": {"b": 2}}`."""
    met: dict[str, tuple[str, ...]] = {}
    stack: list[tuple[tuple[str, ...], Any]] = [((), metadata)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += (((*path, key), element) for key, element in value.items())
        elif isinstance(value, list):
            stack += ((path, element) for element in value)
        elif met.setdefault(".".join(path), path) != path:
            raise UnfitError(
                f"field {shown('.'.join(path), 60)} is there twice, as a name with a dot and inside a "
                "dictionary; rename one"
            )


def _say_missing(name: str, item: str) -> None:
    if name in _told or len(_told) >= _MAX_TOLD:
        return
    _told.add(name)
    _log.warning(
        "metadata: field %s of id %s is NaN or missing, and is taken as absent (said once for each field)",
        shown(name, 60),
        shown(item, 60),
    )
