"""Lists that callers hand to a gallery: ids, and what belongs to each. Checked at the door, as plain types.

What is taken here comes out again wherever ids and sources go: SQLite, JSON, parquet, file systems.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery.metadata.values import is_missing, plain_text, storable
from cir_infer.inputs.arguments import plain_path
from cir_infer.inputs.arrays import unmasked

__all__ = [
    "MAX_ID",
    "MAX_SOURCE",
    "checked_column",
    "checked_engine",
    "checked_fingerprint",
    "checked_ids",
    "checked_path",
    "checked_rows",
    "checked_sources",
    "checked_texts",
    "expected_fingerprint",
    "named_ids",
    "tokens_of",
]

MAX_ID = 4096
"""Longest id in characters."""
_MAX_FINGERPRINT = 1024
MAX_SOURCE = 1 << 16
"""Longest source or stamp in characters."""


def checked_ids(ids: Iterable[str], *, ordered: bool = True) -> list[str]:
    """The ids of a call as a list of distinct, non-empty texts of exactly the type `str`.

    Args:
        ids: texts, also of subclasses of `str` (NumPy's, enums).
        ordered: whether something else is given for each id, so that a set, which has no order, is refused.

    Raises:
        UsageError: ids is itself one text, or no list.
        GalleryError: an id is not a text, is empty, too long, cannot be stored, or comes twice.
    """
    if ordered and isinstance(ids, (Set, Mapping)):
        raise UsageError(f"ids is a {type(ids).__name__}; expected a list, one id for each item in order")
    checked = [_checked_id(item) for item in _iterated("ids", ids)]
    if len(set(checked)) != len(checked):
        seen: set[str] = set()
        twice = next(item for item in checked if item in seen or seen.add(item))  # type: ignore[func-returns-value]
        raise GalleryError(f"id {shown(twice)} comes twice in one call; ids name items, give each its own")
    return checked


def checked_path(name: str, path: Any) -> Path:
    """A path of a file or a folder.

    Raises:
        UsageError: it is no text and no path, or one that no file system can have.
    """
    if isinstance(path, os.PathLike):
        path = plain_path(path)
    if not isinstance(path, str) or not path:
        raise UsageError(f"{name} is {shown(path, 80)}; expected a path, non-empty text")
    place = Path(plain_text(path))
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # told by whoever opens it
    except (OSError, ValueError) as error:  # too long, NUL, not in the encoding of file names
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{name} is {shown(path, 80)}, which cannot be a path: {shown(reason, 80)}"
        ) from error
    return place


def checked_fingerprint(fingerprint: Any) -> str | None:
    """The fingerprint of a bundle, whatever text names another model, or None.

    Raises:
        UsageError: it is something else.
    """
    if fingerprint is None:
        return None
    if (
        not isinstance(fingerprint, str)
        or not 0 < len(fingerprint) <= _MAX_FINGERPRINT
        or "\0" in fingerprint
    ):
        raise UsageError(
            f"fingerprint is {shown(fingerprint, 80)}; expected that of a bundle or the name of a model, a "
            f"text of 1 to {_MAX_FINGERPRINT:,} characters"
        )
    if not storable(fingerprint):
        raise UsageError(f"fingerprint is {shown(fingerprint, 80)}, which is not valid Unicode")
    return plain_text(fingerprint)


def checked_engine(engine: Any) -> Any:
    """An engine, or what stands for one that only has to be told apart; or None.

    Raises:
        UsageError: it is something else, e.g. the path of a bundle.
    """
    if engine is None or (hasattr(engine, "fingerprint") and hasattr(engine, "dimension")):
        return engine
    raise UsageError(f"engine is {shown(engine, 80)}; expected an Engine, e.g. Engine('my.cir'), or None")


def expected_fingerprint(engine: Any, fingerprint: Any) -> str | None:
    """What rows have to be: those of an engine's bundle, or of a model that goes by a name; None for any.

    Raises:
        UsageError: the two contradict each other, or the name is no such text.
    """
    named = checked_fingerprint(fingerprint)
    if engine is None:
        return named
    stated: str = engine.fingerprint
    if named not in (None, stated):
        raise UsageError(
            f"fingerprint is {shown(named, 80)}, that of the engine is {shown(stated, 80)}; leave it out"
        )
    return stated


def tokens_of(engine: Any) -> int:
    """How many vectors an engine, or what stands for one, makes of an image."""
    return int(getattr(engine, "tokens_per_item", 1))


def checked_rows(rows: Any) -> npt.NDArray[np.int64]:
    """Numbers of rows, as int64 (n,).

    Raises:
        UsageError: they are no whole numbers.
    """
    try:
        wanted = unmasked(rows)
    except Exception as error:  # what arrays of others raise
        raise UsageError(f"rows cannot be read: {shown(error, 80)}; expected whole numbers") from error
    if wanted.ndim > 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise UsageError(f"rows is {shown(rows, 80)}; expected a list of whole numbers")
    if wanted.dtype.kind == "u" and wanted.size and int(wanted.max()) >= 1 << 63:
        raise UsageError(f"row {wanted.max()} is asked for; expected numbers of 64 bits")
    return wanted.astype(np.int64).reshape(-1)


def named_ids(name: str, ids: Iterable[str]) -> list[str]:
    """The ids that an argument names to look them up, each once; they need not exist.

    Those that no item can have, since they are not valid Unicode, are left out.

    Raises:
        UsageError: it is itself one text, no list, or one of them is not a text.
    """
    found: dict[str, None] = {}
    for number, item in enumerate(_iterated(name, ids)):
        if not isinstance(item, str):
            raise UsageError(
                f"{name}[{number}] is {shown(item, 60)}, of type {type(item).__name__}; expected an id"
            )
        found[plain_text(item)] = None
    return list(filter(storable, found))


def checked_column(name: str, values: Iterable[Any] | None, count: int, what: str) -> list[Any]:
    """A list of what belongs to each of `count` ids; all None where there is none.

    Raises:
        UsageError: it is no list.
        GalleryError: it has another length.
    """
    if values is None:
        return [None] * count
    if isinstance(values, (Mapping, Set)):
        raise UsageError(f"{name} is a {type(values).__name__}; expected a list of {what}, one for each id")
    given = _iterated(name, values)
    if not isinstance(values, Sequence):  # an iterator may fill one dictionary again and again
        given = (dict(value) if type(value) is dict else value for value in given)
    listed = list(islice(given, count + 1))
    if len(listed) != count:
        more = "more" if len(listed) > count else f"{len(listed):,}"
        found = f"{len(values):,}" if isinstance(values, Sized) else more
        raise GalleryError(f"{name} has {found} entries for {count:,} ids; expected one for each")
    return listed


def checked_sources(sources: Iterable[Any] | None, ids: list[str]) -> list[str | None]:
    """Paths of images, as text, or None.

    Raises:
        UsageError: it is no list.
        GalleryError: it has another length than ids, or one of them is no path; names the id.
    """
    column = checked_column("sources", sources, len(ids), "paths or None")
    return [_checked_text("source", source, item) for source, item in zip(column, ids, strict=True)]


def checked_texts(name: str, values: Iterable[Any] | None, ids: list[str]) -> list[str | None]:
    """Texts or None, one for each id.

    Raises:
        UsageError, GalleryError: as `checked_sources`.
    """
    column = checked_column(f"{name}s", values, len(ids), "texts or None")
    return [_checked_text(name, value, item) for value, item in zip(column, ids, strict=True)]


def _iterated(name: str, values: Any) -> Iterator[Any]:
    """The elements one by one, so that the first wrong one ends a list that is far too long."""
    if isinstance(values, (str, bytes, bytearray, memoryview, os.PathLike)):
        raise UsageError(
            f"{name} is one string ({shown(values, 60)}); expected a list, e.g. {name}=[{shown(values, 60)}]"
        )
    try:
        return iter(values)
    except TypeError:
        raise UsageError(
            f"{name} is {shown(values, 60)}, of type {type(values).__name__}; expected a list"
        ) from None


def _checked_id(item: object) -> str:
    if not isinstance(item, str):
        raise GalleryError(
            f"an id is {shown(item, 80)}, of type {type(item).__name__}; expected a non-empty string, "
            "so convert numbers with str()"
        )
    item = plain_text(item)
    if not item or len(item) > MAX_ID:
        raise GalleryError(
            f"an id is {shown(item, 80)}; expected a non-empty string of at most {MAX_ID} characters"
        )
    if not storable(item):
        raise GalleryError(f"an id is {shown(item, 80)}, which is not valid Unicode")
    return item


def _checked_text(name: str, value: object, item: str) -> str | None:
    if value is None or is_missing(value):
        return None
    if isinstance(value, os.PathLike):
        # It is resolved when it is given: the current folder may be another when it is used.
        value = os.path.abspath(plain_path(value))  # noqa: PTH100
    if not isinstance(value, str):
        raise GalleryError(
            f"the {name} of id {shown(item)} is {shown(value, 60)}, of type {type(value).__name__}; "
            "expected text or None"
        )
    value = plain_text(value)
    if len(value) > MAX_SOURCE or "\0" in value or not storable(value):
        raise GalleryError(
            f"the {name} of id {shown(item)} is {shown(value, 80)}; expected valid Unicode without NUL, "
            f"of at most {MAX_SOURCE:,} characters"
        )
    return value
