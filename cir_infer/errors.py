"""The typed errors of the SDK, and how they show what was wrong.

Every message says what was found, what was expected and what to do about it. Commands turn a
`CirError` into one line on stderr and exit code 1 (2 for `UsageError`). What was found may be a stranger's: a
message shows it through `shown`, and is itself short and free of control characters, whatever it was made of.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, NamedTuple

__all__ = [
    "BundleError",
    "CheckpointError",
    "CirError",
    "DatasetError",
    "DeviceError",
    "ExportError",
    "GalleryError",
    "ImageError",
    "MissingShard",
    "PackageError",
    "ScoringError",
    "ShardError",
    "StaleHitError",
    "TextError",
    "TrainingError",
    "UsageError",
    "brief",
    "came_of",
    "interrupt_in",
    "lack",
    "lack_in",
    "shown",
]

_PARTS = 8
"""Elements of a collection that are shown."""

_DEPTH = 3
"""Collections inside one another that are shown."""

_WORD = 200
"""Characters of a path, or of another word, that a message holds."""

_LONG = re.compile(rf"\S{{{_WORD + 100},}}")


_LACKING = {
    errno.ENFILE: "this machine has too many open files",  # whose own words begin as the next one's
    errno.EMFILE: "this process has too many open files; raise the limit (ulimit -n)",
    errno.ENOMEM: "there is no memory left",
}

_NO_MEMORY = re.compile(r"std::bad_alloc\b|failed to map segment from shared object(?!:)")
"""What C++ and the loader of libraries say; for want of a right the loader says more."""


def lack(error: BaseException | None) -> str | None:
    """What a process or machine lacked, in words, where an error or what it came of says no more than that.

    It says nothing of the file that was to be read, which is not damaged for that.
    """
    for one in () if error is None else came_of(error):
        if isinstance(one, MemoryError):
            return _LACKING[errno.ENOMEM]
        if isinstance(one, OSError) and one.errno in _LACKING:
            return _LACKING[one.errno]
        if isinstance(one, (ImportError, RuntimeError)) and (words := lack_in(str(one))):
            return words
    return None


def lack_in(text: str) -> str | None:
    """What a compiled library lacked, in words, where the message of its error says no more than that."""
    for number, words in _LACKING.items():
        if f": {os.strerror(number)}" in text:
            return words
    return _LACKING[errno.ENOMEM] if _NO_MEMORY.search(text) else None


def interrupt_in(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt that an error came of: a compiled module says ImportError of one."""
    return next((one for one in came_of(error) if isinstance(one, KeyboardInterrupt)), None)


def came_of(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """An error and what it was raised from, the latest first.

    Args:
        error: the error.
        contexts: follow also what was being handled when it was raised, unless that was left out.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        context = one.__context__ if contexts and not one.__suppress_context__ else None
        one = one.__cause__ or context


def shown(value: object, limit: int = 120) -> str:
    """A value as a message shows it: short and printable, for little work however large the value is.

    Text stands in quotes; paths and exceptions speak for themselves. What is left out is counted.

    Args:
        value: anything.
        limit: about how many characters.
    """
    try:
        return _shown(value, limit, _DEPTH)
    except Exception:  # what a stranger's repr raises; a message is made all the same
        return f"a value of type {type(value).__name__}"


def _shown(value: object, limit: int, depth: int) -> str:
    if isinstance(value, BaseException):
        return _plain(" ".join(str(value).split("\n")) or type(value).__name__, limit)
    if isinstance(value, os.PathLike):
        return _plain(os.fsdecode(value), max(limit, 200))
    if isinstance(value, str):
        text = repr(str.__str__(value[:limit]))
        return text if len(value) <= limit else f"{text}... ({len(value):,} characters)"
    if isinstance(value, (bytes, bytearray, memoryview)):
        text = repr(bytes(value[: limit // 2]))
        return text if len(value) <= limit // 2 else f"{text}... ({len(value):,} bytes)"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length():,} bits"
    shape: Any = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return _plain(f"{type(value).__name__} of shape {shape}", limit)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        parts: Iterable[Any] = (_Named(field.name, getattr(value, field.name)) for field in fields)
        return f"{type(value).__name__}({_joined(parts, len(fields), limit, depth)})"
    if isinstance(value, Mapping):
        return f"{{{_joined((_Named(*item, ': ') for item in value.items()), len(value), limit, depth)}}}"
    if isinstance(value, Collection):
        ends = "()" if isinstance(value, tuple) else "[]" if isinstance(value, list) else "{}"
        return f"{ends[0]}{_joined(value, len(value), limit, depth)}{ends[1]}"
    return _plain(repr(value), limit)


class _Named:
    """A name and its value, between two elements of a collection."""

    def __init__(self, name: object, value: object, between: str = "=") -> None:
        self.name, self.value, self.between = name, value, between

    def text(self, limit: int, depth: int) -> str:
        name = str(self.name) if self.between == "=" else _shown(self.name, limit, depth)
        return f"{name}{self.between}{_shown(self.value, limit, depth)}"


def _joined(values: Iterable[Any], count: int, limit: int, depth: int) -> str:
    if depth == 0 and count:
        return f"... {count:,}"
    texts: list[str] = []
    for value in islice(values, _PARTS):
        if sum(map(len, texts)) > limit:
            break
        deeper = (max(limit // 2, 20), depth - 1)
        texts.append(value.text(*deeper) if isinstance(value, _Named) else _shown(value, *deeper))
    return ", ".join(texts) + (f", ... ({count:,} in all)" if count > len(texts) else "")


def _plain(text: str, limit: int) -> str:
    """Text without quotes: what cannot be printed is escaped, the middle of a long one left out."""
    text = _cut(text, limit)
    if text.isprintable():
        return text
    return _cut("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), limit)


def brief(text: str, limit: int) -> str:
    """A message at most so long, in which no path or other word without a space is longer than 200 or so.

    What is left out of the middle is counted.
    """
    if len(text) > _WORD:
        text = _LONG.sub(lambda word: _cut(word[0], _WORD), text)
    return _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    room = max(limit - 40, 20)
    head, tail = room - room // 3, room // 3
    return f"{text[:head]}... ({len(text) - room:,} characters left out) ...{text[-tail:]}"


class CirError(Exception):
    """Base of every error that the SDK raises on purpose.

    Its message is `brief`, of at most `longest` characters, and holds nothing that a terminal would obey but
    the ends of lines.
    """

    longest: ClassVar[int] = 3000

    def __init__(self, *args: object) -> None:
        super().__init__(
            *(_plain(brief(arg, self.longest), self.longest) if isinstance(arg, str) else arg for arg in args)
        )


class UsageError(CirError):
    """An argument or a flag is wrong: a value out of range, a wrong type, a contradiction."""


class ImageError(CirError):
    """An image cannot be read, decoded or accepted."""


class PackageError(CirError):
    """A package is not installed; the message names it and the extra that brings it."""


class TextError(CirError):
    """A modifier text cannot be used: empty, too long, or nothing in it that the model can read."""


class BundleError(CirError):
    """A bundle is missing, cut short, altered, of a newer format, or not a bundle."""


class GalleryError(CirError):
    """A gallery is missing, damaged, locked, empty, or was encoded by another bundle."""


class StaleHitError(GalleryError):
    """A hit is of an item, or a reference, that was replaced since it was found; ask again."""


class MissingShard(NamedTuple):
    """A shard that did not answer.

    Attributes:
        number: its place among the shards, from 0.
        place: where it, or where each of its replicas is.
        rows: how many items were not looked at.
        reason: why.
    """

    number: int
    place: str
    rows: int
    reason: str


class ShardError(CirError):
    """A shard, or one of its replicas, cannot be reached, or did not answer in time.

    Attributes:
        missing: the shards without an answer, where a whole query failed; empty where one call did.
    """

    def __init__(self, *args: object, missing: Iterable[MissingShard] = ()) -> None:
        super().__init__(*args)
        self.missing = tuple(missing)


class ScoringError(CirError):
    """Rows, terms or masks handed to a scorer do not fit its contract."""


class DeviceError(CirError):
    """A device or backend that was asked for by name cannot be used."""


class CheckpointError(CirError):
    """A checkpoint or one of its side files is not what it should be."""


class ExportError(CirError):
    """A model cannot be exported, or the exported graphs disagree with it."""

    longest = 20_000  # it may name every layer that a precision cannot hold


class TrainingError(CirError):
    """A training run cannot start or continue."""


class DatasetError(CirError):
    """A data set on disk is missing, incomplete or not in its published layout."""
