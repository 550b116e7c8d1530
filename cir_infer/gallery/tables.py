"""The tables of the catalogue: their schema, and the statements inside a transaction.

Items are numbered by a key that is never used twice. An item's row never changes: replacing or
removing an item buries its key (a bit in `tombstones`), so whoever still reads an older
generation finds everything as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError
from cir_infer.gallery import metadata as meta
from cir_infer.gallery.segments import CHUNK, SegmentEntry, unpack_chunk

__all__ = [
    "APPLICATION_ID",
    "FORMAT_VERSION",
    "SCHEMA",
    "Change",
    "Connection",
    "Encoding",
    "ItemRecord",
    "State",
    "adopt",
    "begin_encoding",
    "buried",
    "chunks",
    "delete_items",
    "delete_segments",
    "forget_retired",
    "header",
    "insert_items",
    "insert_segment",
    "live_keys",
    "pending",
    "read_state",
    "retire",
    "segment_numbers",
    "segments_of",
    "set_buried",
    "set_header",
]

FORMAT_VERSION = 1
APPLICATION_ID = 0x43495247  # "CIRG"

SCHEMA = {
    "header": "CREATE TABLE header (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "encodings": "CREATE TABLE encodings (encoding INTEGER PRIMARY KEY, fingerprint TEXT, "
    "dimension INTEGER NOT NULL, dtype TEXT NOT NULL)",
    "items": "CREATE TABLE items (key INTEGER PRIMARY KEY, id TEXT NOT NULL, metadata TEXT, source TEXT, "
    "stamp TEXT)",
    "items_by_id": "CREATE INDEX items_by_id ON items (id)",
    "fields": "CREATE TABLE fields (field INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    "fields_by_name": "CREATE UNIQUE INDEX fields_by_name ON fields (name)",
    "attributes": "CREATE TABLE attributes (field INTEGER NOT NULL, value NOT NULL, key INTEGER NOT NULL, "
    "PRIMARY KEY (field, value, key)) WITHOUT ROWID",
    "segments": "CREATE TABLE segments (number INTEGER PRIMARY KEY, encoding INTEGER NOT NULL, "
    "first_key INTEGER NOT NULL, last_key INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, "
    "sha256 TEXT NOT NULL, retired INTEGER)",
    "tombstones": "CREATE TABLE tombstones (chunk INTEGER PRIMARY KEY, bits BLOB NOT NULL)",
    "garbage": "CREATE TABLE garbage (generation INTEGER NOT NULL, keys BLOB NOT NULL)",
}
_SEGMENT = "number, first_key, last_key, rows, bytes, sha256"
_LOOKUP = 500  # ids or keys asked for in one statement; SQLite's oldest limit is 999


Connection = sqlite3.Connection
Change = Callable[[Connection], None]
"""Statements that belong into one transaction."""


class Encoding(NamedTuple):
    """What the rows mean and how they are stored.

    Attributes:
        number: which encoding of this gallery, counting from 1.
        fingerprint: of the bundle that encoded the rows, None where nobody said.
        dimension: D.
        dtype: "float32", "float16" or "int8".
    """

    number: int
    fingerprint: str | None
    dimension: int
    dtype: str


class State(NamedTuple):
    """One generation of the gallery, as the catalogue has it.

    Attributes:
        generation: counts commits.
        next_key: every key of this generation is smaller.
        encoding: of the rows.
        segments: in the order of keys.
        buried: bits by key // CHUNK, for the chunks that have any.
    """

    generation: int
    next_key: int
    encoding: Encoding
    segments: list[SegmentEntry]
    buried: dict[int, bytes]


class ItemRecord(NamedTuple):
    """One item to be stored: its id, metadata, the path it came from, and its stamp."""

    id: str
    metadata: meta.Encoded
    source: str | None
    stamp: str | None


def read_state(connection: Connection) -> State:
    """The generation that this transaction sees."""
    encoding = _encoding(connection, header(connection, "encoding"))
    buried = dict(connection.execute("SELECT chunk, bits FROM tombstones"))
    if not all(isinstance(chunk, int) and isinstance(bits, bytes) for chunk, bits in buried.items()):
        raise _damaged("its list of removed items makes no sense")
    return State(
        header(connection, "generation"),
        header(connection, "next_key"),
        encoding,
        segments_of(connection, encoding.number),
        buried,
    )


def _damaged(what: str) -> GalleryError:
    return GalleryError(f"the catalogue is damaged ({what}); restore the gallery from a copy")


def segments_of(connection: Connection, encoding: int) -> list[SegmentEntry]:
    """The segments of an encoding that are not retired, in the order of their keys."""
    rows = connection.execute(
        f"SELECT {_SEGMENT} FROM segments WHERE encoding = ? AND retired IS NULL ORDER BY first_key",
        (encoding,),
    )
    return [_entry(row) for row in rows]


def live_keys(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """The live key of each id that has one."""
    candidates: list[tuple[str, int]] = []
    for chunk in chunks(ids):
        marks = ",".join("?" * len(chunk))
        candidates += connection.execute(f"SELECT id, key FROM items WHERE id IN ({marks})", chunk)
    dead = buried(connection, [key for _, key in candidates])
    return {item: key for (item, key), gone in zip(candidates, dead, strict=True) if not gone}


def buried(connection: Connection, keys: Sequence[int]) -> list[bool]:
    """Whether each key is buried."""
    chunks: dict[int, bytes] = {}
    for chunk in {key // CHUNK for key in keys}:
        found = connection.execute("SELECT bits FROM tombstones WHERE chunk = ?", (chunk,)).fetchone()
        chunks[chunk] = found[0] if found else b""
    return [_bit(chunks[key // CHUNK], key % CHUNK) for key in keys]


def set_buried(connection: Connection, keys: Iterable[int], value: bool) -> None:
    """Bury keys, or forget that they were buried once their items are gone."""
    by_chunk: dict[int, list[int]] = {}
    for key in keys:
        by_chunk.setdefault(key // CHUNK, []).append(key % CHUNK)
    for chunk, places in by_chunk.items():
        found = connection.execute("SELECT bits FROM tombstones WHERE chunk = ?", (chunk,)).fetchone()
        flags = unpack_chunk(found[0] if found else b"")
        flags[places] = value
        if flags.any():
            bits = np.packbits(flags, bitorder="little").tobytes()
            connection.execute("INSERT OR REPLACE INTO tombstones VALUES (?, ?)", (chunk, bits))
        else:
            connection.execute("DELETE FROM tombstones WHERE chunk = ?", (chunk,))


def insert_items(connection: Connection, first_key: int, items: Sequence[ItemRecord]) -> None:
    """Store items under consecutive keys, with the attributes that filters look up."""
    connection.executemany(
        "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
        ((key, i.id, i.metadata.text, i.source, i.stamp) for key, i in enumerate(items, first_key)),
    )
    names = {name for item in items for name, _ in item.metadata.attributes}
    numbers = {name: _field(connection, name) for name in sorted(names)}
    rows = [
        (numbers[name], value, key)
        for key, item in enumerate(items, first_key)
        for name, value in item.metadata.attributes
    ]
    # In the order of the index, so that a large commit writes it front to back.
    rows.sort(key=lambda row: (row[0], isinstance(row[1], str), row[1], row[2]))
    connection.executemany("INSERT OR IGNORE INTO attributes VALUES (?, ?, ?)", rows)


def delete_items(connection: Connection, keys: Sequence[int]) -> None:
    """Forget buried items for good: their attributes, their burial and themselves."""
    for chunk in chunks(keys):
        marks = ",".join("?" * len(chunk))
        for key, text in connection.execute(
            f"SELECT key, metadata FROM items WHERE key IN ({marks}) AND metadata IS NOT NULL", chunk
        ).fetchall():
            connection.executemany(
                "DELETE FROM attributes WHERE field = (SELECT field FROM fields WHERE name = ?) "
                "AND value = ? AND key = ?",
                [(name, value, key) for name, value in meta.attributes_of(meta.decode(text))],
            )
        connection.execute(f"DELETE FROM items WHERE key IN ({marks})", chunk)
    set_buried(connection, keys, False)


def segment_numbers(connection: Connection) -> list[int]:
    """The numbers of all segments, retired ones too."""
    return [number for (number,) in connection.execute("SELECT number FROM segments")]


def retire(connection: Connection, segments: Iterable[SegmentEntry], dropped: npt.NDArray[np.int64]) -> None:
    """Take segments out of the next generation; whoever reads an older one still needs them.

    Args:
        connection: in a write transaction.
        segments: which.
        dropped: the keys of the buried rows that no other segment takes over, int64.
    """
    next_generation = header(connection, "generation") + 1
    connection.executemany(
        "UPDATE segments SET retired = ? WHERE number = ?",
        [(next_generation, entry.number) for entry in segments],
    )
    if len(dropped):
        connection.execute(
            "INSERT INTO garbage VALUES (?, ?)", (next_generation, dropped.astype("<i8").tobytes())
        )


def forget_retired(connection: Connection, oldest_reader: int | None) -> list[SegmentEntry]:
    """Forget retired segments and dropped items that no reader needs.

    Args:
        connection: in a write transaction.
        oldest_reader: the oldest generation that is being read, None for none.

    Returns:
        The segments whose files can go once this is committed.
    """
    limit = header(connection, "generation") if oldest_reader is None else oldest_reader
    doomed = connection.execute(f"SELECT {_SEGMENT} FROM segments WHERE retired <= ?", (limit,)).fetchall()
    connection.execute("DELETE FROM segments WHERE retired <= ?", (limit,))
    # The rows of an unfinished re-encoding may still name dropped items.
    if not pending(connection):
        blobs = connection.execute("SELECT keys FROM garbage WHERE generation <= ?", (limit,)).fetchall()
        for (blob,) in blobs:
            delete_items(connection, np.frombuffer(blob, "<i8").tolist())
        connection.execute("DELETE FROM garbage WHERE generation <= ?", (limit,))
    return [_entry(row) for row in doomed]


def pending(connection: Connection) -> list[Encoding]:
    """Encodings that are being prepared to take the place of the current one."""
    current = header(connection, "encoding")
    numbers = connection.execute("SELECT encoding FROM encodings WHERE encoding > ?", (current,)).fetchall()
    return [_encoding(connection, number) for (number,) in numbers]


def begin_encoding(connection: Connection, encoding: Encoding) -> None:
    """Make room for an encoding that is to take the place of the current one, instead of any other such."""
    current = header(connection, "encoding")
    connection.execute("DELETE FROM segments WHERE encoding > ?", (current,))
    connection.execute("DELETE FROM encodings WHERE encoding > ?", (current,))
    connection.execute("INSERT INTO encodings VALUES (?, ?, ?, ?)", encoding)


def adopt(connection: Connection, encoding: int) -> None:
    """Make an encoding the current one; its predecessor's segments are retired already."""
    set_header(connection, "encoding", encoding)
    connection.execute("DELETE FROM encodings WHERE encoding < ?", (encoding,))


def delete_segments(connection: Connection, segments: Iterable[SegmentEntry]) -> None:
    """Forget segments that no reader can have seen."""
    connection.executemany("DELETE FROM segments WHERE number = ?", [(entry.number,) for entry in segments])


def insert_segment(connection: Connection, encoding: int, entry: SegmentEntry) -> None:
    """Make a segment part of an encoding."""
    connection.execute(
        f"INSERT INTO segments ({_SEGMENT}, encoding) VALUES (?, ?, ?, ?, ?, ?, ?)", (*entry, encoding)
    )
    set_header(connection, "next_segment", entry.number + 1)


def set_header(connection: Connection, name: str, value: int) -> None:
    """Set one number of the header."""
    connection.execute("UPDATE header SET value = ? WHERE name = ?", (value, name))


def header(connection: Connection, name: str) -> int:
    """One number of the header."""
    row = connection.execute("SELECT value FROM header WHERE name = ?", (name,)).fetchone()
    if row is None or not isinstance(row[0], int):
        raise _damaged(f"no {name} in its header")
    return int(row[0])


def _encoding(connection: Connection, number: int) -> Encoding:
    row = connection.execute("SELECT * FROM encodings WHERE encoding = ?", (number,)).fetchone()
    if (
        row is None
        or not (row[1] is None or isinstance(row[1], str))
        or not (isinstance(row[2], int) and 0 < row[2] <= 1 << 20)
        or row[3] not in ("float32", "float16", "int8")
    ):
        raise _damaged("its encoding makes no sense")
    return Encoding(*row)


def _entry(row: tuple[Any, ...]) -> SegmentEntry:
    entry = SegmentEntry(*row)
    numbers = entry[:5]
    if (
        not all(isinstance(value, int) and 0 < value < 1 << 62 for value in numbers)
        or not isinstance(entry.sha256, str)
        or not entry.rows <= entry.last_key - entry.first_key + 1
    ):
        raise _damaged("a segment makes no sense")
    return entry


def _field(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT field FROM fields WHERE name = ?", (name,)).fetchone()
    if row is None:
        return int(connection.execute("INSERT INTO fields (name) VALUES (?)", (name,)).lastrowid or 0)
    return int(row[0])


def _bit(bits: bytes, place: int) -> bool:
    return place // 8 < len(bits) and bool(bits[place // 8] >> (place % 8) & 1)


def chunks(values: Sequence[Any]) -> Iterator[list[Any]]:
    """Values in portions that one statement takes."""
    for start in range(0, len(values), _LOOKUP):
        yield list(values[start : start + _LOOKUP])
