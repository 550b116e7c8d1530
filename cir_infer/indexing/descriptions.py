"""Tables that say what a gallery is to hold about its items: ids and fields, without a look at any image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.errors import DatasetError, GalleryError, shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.arguments import checked_ids
from cir_infer.gallery.metadata.metadata import encode
from cir_infer.indexing.manifests import (
    IMAGE_COLUMNS,
    MANIFEST_ENDINGS,
    id_of,
    image_columns,
    read_manifest,
)

__all__ = ["Described", "describe"]

_TOGETHER = 8192
_CHARACTERS = 1 << 24
"""So many items, or so many characters of JSON, at most change in one commit."""

_Part = dict[str, dict[str, Any]]
"""Fields by id."""


class Described(NamedTuple):
    """What a table has changed.

    Attributes:
        named: how many items it names.
        changed: how many of them have other metadata than before.
        missing: how many of them the gallery does not hold.
    """

    named: int
    changed: int
    missing: int


def describe(
    galleries: Sequence[Gallery],
    of: Callable[[str], Gallery],
    path: Path,
    *,
    merge: bool = False,
    skip_missing: bool = False,
) -> Described:
    """Give items the metadata that a table says, as the only writer of their galleries meanwhile.

    A table that `cir-index` reads serves as it is: its column of images is no field, and is the id where
    there is no column `id`. All of it is read before anything is changed, and again while it is, so it is
    never in memory as a whole; some items at a time are a commit.

    Args:
        galleries: one, or the shards of one.
        of: in which of them an id belongs.
        path: of the table.
        merge: see `Gallery.set_metadata`; else what the table does not name goes, and has no null either.
        skip_missing: pass over ids that the gallery lacks, which are an error else.

    Raises:
        DatasetError: the table cannot be read, a row is broken or names no id, or an id comes twice.
        GalleryError: an id is missing, the metadata cannot be stored; another writer, or the disk is full.
    """
    named = changed = missing = 0
    first: str | None = None
    with ExitStack() as held:
        for gallery in galleries:
            held.enter_context(gallery.writing())
        for part in _parts(path, merge):
            named += len(part)
            lacking = set(checked_ids(list(part)))
            for gallery, mine in _spread(part, of):
                lacking -= gallery.held(list(mine)).keys()
            missing += len(lacking)
            if lacking and first is None:
                first = next(item for item in part if item in lacking)
        if first is not None and not skip_missing:
            # All are counted: one is a slip, all are the table of another gallery.
            raise GalleryError(
                f"{of(first).path}: holds no id {shown(first)}, which {path} names ({missing:,} of its "
                f"{named:,} are missing); nothing was changed; pass --skip-missing to pass over such ids"
            )
        for part in _parts(path, merge):
            for gallery, mine in _spread(part, of):
                changed += gallery.set_metadata(list(mine), list(mine.values()), merge=merge, missing="skip")
    return Described(named, changed, missing)


def _spread(part: _Part, of: Callable[[str], Gallery]) -> list[tuple[Gallery, _Part]]:
    """Items by the gallery in which they belong."""
    found: dict[int, tuple[Gallery, _Part]] = {}
    for item, fields in part.items():
        gallery = of(item)
        found.setdefault(id(gallery), (gallery, {}))[1][item] = fields
    return list(found.values())


def _parts(path: Path, nulls: bool) -> Iterator[_Part]:
    """The items that a table names, some at a time; fields without a value only where these are asked for."""
    part: _Part = {}
    size = 0
    for item, fields in _rows(path, nulls):
        text = encode(fields, item).text
        if len(part) == _TOGETHER or size + len(text or "") > _CHARACTERS:
            yield part
            part, size = {}, 0
        part[item] = fields
        size += len(text or "")
    if part:
        yield part


def _rows(path: Path, nulls: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix.lower() not in MANIFEST_ENDINGS:
        raise DatasetError(f"{path}: is no table; expected a file that ends in {', '.join(MANIFEST_ENDINGS)}")

    def check(names: Collection[str]) -> None:
        if not set(names) & {"id", *IMAGE_COLUMNS}:
            found = ", ".join(shown(name, 40) for name in list(names)[:20])
            raise DatasetError(f"{path}: no column names the items; found {found or 'none'}, expected id")

    met: set[str] = set()
    with closing(read_manifest(str(path), ("id", *IMAGE_COLUMNS), check)) as rows:
        for where, row in rows:
            if isinstance(row, str):
                raise DatasetError(f"{path} {where}: {row}")
            column, place = image_columns(row)
            item = id_of(row, column, place)
            if not isinstance(item, str) or not item:
                raise DatasetError(
                    f"{path} {where}: its id is {shown(item, 60)}; expected text or a whole number in a "
                    "column id"
                )
            if item in met:
                raise DatasetError(f"{path} {where}: id {shown(item)} came before; name each item once")
            met.add(item)
            fields = {name: value for name, value in row.items() if name not in ("id", column)}
            yield item, {name: value for name, value in fields.items() if nulls or value is not None}
