"""Verification: does everything in a gallery fit together, down to the last bit?"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.console.progress import progress_bar
from cir_infer.errors import GalleryError, lack, shown
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.checksums import Tally, problems
from cir_infer.gallery.catalogue.schema import CHECKED, stored_version
from cir_infer.gallery.disk import files
from cir_infer.gallery.disk.folder import ROWS
from cir_infer.gallery.metadata import metadata as meta
from cir_infer.gallery.rows.segments import Segment, SegmentEntry
from cir_infer.gallery.rows.vectors import rows_at_once
from cir_infer.gallery.store import Store

__all__ = ["Verification", "verify"]

_BLOCK = 8 << 20
_MAX_PROBLEMS = 100


@dataclass
class Verification:
    """What a verification found.

    Attributes:
        rows: live rows.
        segments: files that were read.
        bytes: bytes that were read from them.
        problems: one line each, at most 100; empty for a sound gallery.
    """

    rows: int = 0
    segments: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(store: Store, *, progress: bool = False) -> Verification:
    """Read everything: checksums and values of rows, SQLite's own check, rows, items, attributes.

    A gallery of format 1 has no checksums in its catalogue; everything else is checked all the same.

    Args:
        store: the gallery.
        progress: say how far it is: a bar on a terminal, elsewhere log lines.

    Raises:
        GalleryError: the gallery cannot be read at all, or was exchanged meanwhile.
    """
    report = Verification()
    pinned = store.snapshot()  # keeps the files of this generation while they are read
    with store.catalogue.reading() as connection:
        connection.execute("BEGIN")
        for problem in _problems(store, connection, report, progress):
            report.problems.append(problem)
            if len(report.problems) == _MAX_PROBLEMS:
                break
    del pinned
    if report.problems:
        store.catalogue.check_place()
    return report


def _problems(
    store: Store, connection: tables.Connection, report: Verification, progress: bool
) -> Iterator[str]:
    yield from _told(_page_problems(connection))
    for table in CHECKED.keys() - {"items"}:
        yield from _told(problems(connection, table))
    yield from _told(_content_problems(store, connection, report, progress))


def _told(part: Iterator[str]) -> Iterator[str]:
    """The problems of one part; damage that ends it early is one more, and other parts are still read."""
    try:
        yield from part
    except (GalleryError, sqlite3.Error, UnicodeDecodeError) as error:
        yield f"catalogue: {error}"


def _page_problems(connection: tables.Connection) -> Iterator[str]:
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"catalogue: {text}"


def _content_problems(
    store: Store, connection: tables.Connection, report: Verification, progress: bool
) -> Iterator[str]:
    state = tables.read_state(connection)
    alive = np.zeros(state.next_key, np.bool_)
    last = 0
    opened = _opened(store, state.encoding, state.segments)
    for segment in progress_bar(opened, len(state.segments), "verifying", "file", progress):
        if isinstance(segment, str):
            yield segment
            continue
        name = f"{store.path / ROWS / segment.entry.name}"
        if segment.entry.first_key <= last or segment.entry.last_key >= state.next_key:
            yield f"{name}: its keys overlap with another segment's"
            continue
        last = segment.entry.last_key
        yield from (f"{name}: {problem}" for problem in _segment_problems(store, segment, report))
        live = segment.all_keys()[~segment.buried(state.buried)]
        if ((live < segment.entry.first_key) | (live > last)).any():
            yield f"{name}: its keys are not those of the catalogue"
            continue
        alive[live] = True
    for encoding in tables.pending(connection):
        for segment in _opened(store, encoding, tables.segments_of(connection, encoding.number)):
            if isinstance(segment, str):
                yield segment
            else:
                yield from _segment_problems(store, segment, report)
    report.rows = int(alive.sum())
    yield from _item_problems(connection, alive)


def _opened(
    store: Store, encoding: tables.Encoding, entries: Sequence[SegmentEntry]
) -> Iterator[Segment | str]:
    for entry in entries:
        try:
            yield store.segment(entry, encoding)
        except GalleryError as error:
            if lack(error) is not None:
                raise
            yield str(error)


def _segment_problems(store: Store, segment: Segment, report: Verification) -> Iterator[str]:
    report.segments += 1
    report.bytes += segment.entry.bytes
    digest = hashlib.sha256()
    try:
        with files.open_file(segment.entry.name, os.O_RDONLY, store.folder.rows.fd) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        if lacking := lack(error):
            raise GalleryError(f"{store.path}: cannot be verified now: {lacking}") from error
        yield f"cannot be read: {error.strerror}"
        return
    if digest.hexdigest() != segment.entry.sha256:
        yield "its contents were altered (another sha256 than the catalogue's); restore it from a copy"
    step = rows_at_once(segment.rows.shape[1:], 1 << 14)
    for start in range(0, len(segment.rows), step):
        block = np.abs(segment.rows[start : start + step].astype(np.float32)).max(axis=-1)
        if not np.isfinite(block).all() or not block.all():
            yield "a row is zero or not finite"
            break
    scales = segment.scales
    if scales is not None and not (np.isfinite(scales).all() and (scales > 0).all()):
        yield "a scale is not a positive number"
    if segment.keys is not None and (np.diff(segment.keys) <= 0).any():
        yield "its keys do not ascend"


def _item_problems(connection: tables.Connection, alive: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Every live row has an item with an id of its own, and filters see what its metadata says."""
    fields = {name: number for number, name in connection.execute("SELECT field, name FROM fields")}
    tally = Tally("items") if stored_version(connection) > 1 else None
    met = expected = 0
    for key, item, text, source, stamp, checksum in connection.execute(
        f"SELECT key, id, metadata, source, stamp, {'NULL' if tally is None else 'checksum'} "
        "FROM items ORDER BY key"
    ):
        met += bool(0 <= key < len(alive) and alive[key])
        if tally is not None:
            yield from (
                f"{problem}, id {shown(item, 60)}"
                for problem in tally.add((key, item, text, source, stamp), checksum)
            )
        if not isinstance(item, str) or not isinstance(source, (str, type(None))):
            yield f"item {shown(item, 60)}: its id or its source is not a text"
        try:
            pairs = {(fields.get(name), value) for name, value in meta.attributes_of(meta.decode(text))}
        except (GalleryError, TypeError, ValueError) as error:
            yield f"item {shown(item, 60)}: its metadata is damaged ({error})"
            continue
        expected += len(pairs)
        for number, value in pairs:
            found = connection.execute(
                "SELECT 1 FROM attributes WHERE field = ? AND value = ? AND key = ?", (number, value, key)
            ).fetchone()
            if found is None:
                yield f"item {shown(item, 60)}: a filter would not see {shown(value, 60)} of its metadata"
    if tally is not None:
        yield from tally.close(connection)
    if met != int(alive.sum()):
        yield f"{int(alive.sum()) - met} rows have no item"
    yield from _attribute_problems(connection, expected)
    for item, keys in connection.execute(
        "SELECT id, group_concat(key) FROM items GROUP BY id HAVING count(*) > 1"
    ):
        if sum(bool(alive[int(key)]) for key in keys.split(",") if 0 <= int(key) < len(alive)) > 1:
            yield f"item {shown(item, 60)} is there twice"


def _attribute_problems(connection: tables.Connection, expected: int) -> Iterator[str]:
    """The index of filters holds so many attributes, each once and in the order that ranges rely on."""
    stored = 0
    before: tuple[Any, ...] = ()
    for field_number, value, key in connection.execute(
        "SELECT field, value, key FROM attributes ORDER BY field, value, key"
    ):
        here = (field_number, isinstance(value, str), value, key)
        if not (
            isinstance(value, (int, float, str)) and isinstance(field_number, int) and isinstance(key, int)
        ):
            yield f"an attribute for filters is {shown((field_number, value, key), 60)}"
        elif before and not before < here:
            yield f"the index of filters is out of order at {shown(value, 60)}"
        else:
            before = here
        stored += 1
    if stored != expected:
        yield f"{stored} attributes for filters, the metadata has {expected}"
