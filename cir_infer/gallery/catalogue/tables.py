"""The tables of the catalogue: the statements inside a transaction.

Items are numbered by a key that is never used twice. An item's row never changes: replacing or
removing an item buries its key (a bit in `tombstones`), so whoever still reads an older
generation finds everything as it was. The tables themselves are in `schema`; all changes go through
`checksums`, which keeps a checksum for every row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.gallery.catalogue.checksums import checked_header, checked_rows, delete, insert, set_header
from cir_infer.gallery.catalogue.schema import CHECKED, FORMAT_VERSION, Connection, damaged
from cir_infer.gallery.metadata import metadata as meta
from cir_infer.gallery.rows.segments import CHUNK, SegmentEntry, unpack_chunk
from cir_infer.gallery.rows.vectors import row_shape
from cir_infer.scoring.contract import MOST_ITEM_VALUES, MOST_TOKENS, MOST_VALUES

__all__ = [
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
    "dimensions",
    "encoding_row",
    "forget_retired",
    "header",
    "identities",
    "identity",
    "insert_encoding",
    "insert_items",
    "insert_segment",
    "is_waiting",
    "live_keys",
    "pending",
    "read_state",
    "retire",
    "segment_numbers",
    "segments_of",
    "set_buried",
    "set_header",
    "waiting_bytes",
]

_STORED = re.compile(r"(?:([1-9][0-9]{0,8})\*)?(float32|float16|int8)")
_SEGMENT = ", ".join(CHECKED["segments"])
_LOOKUP = 500  # ids or keys asked for in one statement; SQLite's oldest limit is 999

Change = Callable[[Connection], None]
"""Statements that belong into one transaction."""


class Encoding(NamedTuple):
    """What the rows mean and how they are stored.

    Attributes:
        number: which encoding of this gallery, counting from 1.
        fingerprint: of the bundle that encoded the rows, None where nobody said.
        dimension: D.
        dtype: "float32", "float16" or "int8".
        tokens_per_item: M, how many vectors an item has.
    """

    number: int
    fingerprint: str | None
    dimension: int
    dtype: str
    tokens_per_item: int = 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of an item's row: (D,), or (M, D)."""
        return row_shape(self.tokens_per_item, self.dimension)

    @property
    def row_bytes(self) -> int:
        """What an item's row takes in a file, its scales counted."""
        scale = 4 if self.dtype == "int8" else 0
        return self.tokens_per_item * (self.dimension * np.dtype(self.dtype).itemsize + scale)


class State(NamedTuple):
    """One generation of the gallery, as the catalogue has it.

    Attributes:
        generation: counts commits.
        next_key: every key of this generation is smaller.
        encoding: of the rows.
        segments: in the order of keys.
        buried: bits by key // CHUNK, for the chunks that have any.
        uuid: the gallery's identity, None in format 1.
    """

    generation: int
    next_key: int
    encoding: Encoding
    segments: list[SegmentEntry]
    buried: dict[int, bytes]
    uuid: str | None


class ItemRecord(NamedTuple):
    """One item to be stored: its id, metadata, the path it came from, and its stamp."""

    id: str
    metadata: meta.Encoded
    source: str | None
    stamp: str | None


def read_state(connection: Connection) -> State:
    """The generation that this transaction sees; everything in it fits its checksum.

    Raises:
        GalleryError: the catalogue is damaged.
    """
    header = checked_header(connection)
    encoding = _encoding(connection, _number(header, "encoding"))
    buried = dict(checked_rows(connection, "tombstones"))
    if not all(isinstance(chunk, int) and isinstance(bits, bytes) for chunk, bits in buried.items()):
        raise damaged("its list of removed items makes no sense")
    uuid = header.get("uuid")
    return State(
        _number(header, "generation"),
        _number(header, "next_key"),
        encoding,
        segments_of(connection, encoding.number),
        buried,
        uuid if isinstance(uuid, str) else None,
    )


def identity(connection: Connection) -> str | None:
    """The UUID of the gallery, None in format 1."""
    row = connection.execute("SELECT value FROM header WHERE name = 'uuid'").fetchone()
    return row[0] if row is not None and isinstance(row[0], str) else None


def identities(connection: Connection) -> tuple[str, ...]:
    """The UUID of the gallery, then that of the gallery whose backup it is; none in format 1."""
    found = dict(connection.execute("SELECT name, value FROM header WHERE name IN ('uuid', 'origin')"))
    known = (found.get("uuid"), found.get("origin"))
    return tuple(uuid for uuid in known if isinstance(uuid, str))


def header(connection: Connection, name: str) -> int:
    """One number of the header."""
    row = connection.execute("SELECT value FROM header WHERE name = ?", (name,)).fetchone()
    return _number({} if row is None else {name: row[0]}, name)


def _number(header: dict[str, Any], name: str) -> int:
    value = header.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise damaged(f"no {name} in its header")
    return value


def segments_of(connection: Connection, encoding: int) -> list[SegmentEntry]:
    """The segments of an encoding that are not retired, in the order of their keys."""
    found = [
        _entry((number, *rest))
        for number, owner, *rest, retired in checked_rows(connection, "segments")
        if owner == encoding and retired is None
    ]
    return sorted(found, key=lambda entry: entry.first_key)


def segment_numbers(connection: Connection) -> list[int]:
    """The numbers of all segments, retired ones too."""
    return [number for (number,) in connection.execute("SELECT number FROM segments")]


def _entry(row: tuple[Any, ...]) -> SegmentEntry:
    """A segment of the catalogue, from its number, first_key, last_key, rows, bytes and sha256."""
    entry = SegmentEntry(*row)
    numbers = entry[:5]
    if (
        not all(isinstance(value, int) and 0 < value < 1 << 62 for value in numbers)
        or not isinstance(entry.sha256, str)
        or not entry.rows <= entry.last_key - entry.first_key + 1
    ):
        raise damaged("a segment makes no sense")
    return entry


def dimensions(connection: Connection) -> set[int]:
    """D of each encoding."""
    return {row[2] for row in checked_rows(connection, "encodings")}


def pending(connection: Connection) -> list[Encoding]:
    """Encodings that are being prepared to take the place of the current one."""
    current = header(connection, "encoding")
    return [
        _encoding(connection, row[0]) for row in checked_rows(connection, "encodings") if row[0] > current
    ]


def _encoding(connection: Connection, number: int) -> Encoding:
    row = next((row for row in checked_rows(connection, "encodings") if row[0] == number), None)
    stored = None if row is None or not isinstance(row[3], str) else _STORED.fullmatch(row[3])
    if (
        row is None
        or stored is None
        or not (row[1] is None or isinstance(row[1], str))
        or not (isinstance(row[2], int) and 0 < row[2] <= MOST_VALUES)
    ):
        raise damaged("its encoding makes no sense")
    tokens = int(stored[1] or 1)
    if not (1 <= tokens <= MOST_TOKENS and tokens * row[2] <= MOST_ITEM_VALUES):
        raise damaged("its encoding makes no sense")
    return Encoding(row[0], row[1], row[2], stored[2], tokens)


def encoding_row(encoding: Encoding) -> tuple[int, str | None, int, str]:
    """An encoding as the table holds it: several vectors an item stand before the type, "32*float16"."""
    number, fingerprint, dimension, dtype, tokens = encoding
    return number, fingerprint, dimension, dtype if tokens == 1 else f"{tokens}*{dtype}"


def insert_encoding(connection: Connection, encoding: Encoding) -> None:
    """Add an encoding. One of several vectors an item makes the gallery format 3."""
    insert(connection, "encodings", [encoding_row(encoding)])
    if encoding.tokens_per_item > 1:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


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
    bits: dict[int, bytes] = {}
    for chunk in {key // CHUNK for key in keys}:
        bits[chunk] = _buried_chunk(connection, chunk)
    return [_bit(bits[key // CHUNK], key % CHUNK) for key in keys]


def _buried_chunk(connection: Connection, chunk: int) -> bytes:
    """The burial bits of the keys of one chunk; empty where none is buried."""
    found = connection.execute("SELECT bits FROM tombstones WHERE chunk = ?", (chunk,)).fetchone()
    if found is None:
        return b""
    if not isinstance(found[0], bytes):
        raise damaged("its list of removed items makes no sense")
    return found[0]


def _bit(bits: bytes, place: int) -> bool:
    return place // 8 < len(bits) and bool(bits[place // 8] >> (place % 8) & 1)


def chunks(values: Sequence[Any]) -> Iterator[list[Any]]:
    """The values in parts that fit into one statement."""
    for start in range(0, len(values), _LOOKUP):
        yield list(values[start : start + _LOOKUP])


# ---- what is changed


def set_buried(connection: Connection, keys: Iterable[int], value: bool) -> None:
    """Bury keys, or forget that they were buried once their items are gone."""
    by_chunk: dict[int, list[int]] = {}
    for key in keys:
        by_chunk.setdefault(key // CHUNK, []).append(key % CHUNK)
    for chunk, places in by_chunk.items():
        flags = unpack_chunk(_buried_chunk(connection, chunk))
        flags[places] = value
        delete(connection, "tombstones", "chunk = ?", (chunk,))
        if flags.any():
            bits = np.packbits(flags, bitorder="little").tobytes()
            insert(connection, "tombstones", [(chunk, bits)])


def insert_items(connection: Connection, items: Sequence[tuple[int, ItemRecord]]) -> None:
    """Store items under their keys, with the attributes that filters look up."""
    insert(
        connection,
        "items",
        ((key, item.id, item.metadata.text, item.source, item.stamp) for key, item in items),
    )
    names = {name for _, item in items for name, _ in item.metadata.attributes}
    numbers = {name: _field(connection, name) for name in sorted(names)}
    rows = [(numbers[name], value, key) for key, item in items for name, value in item.metadata.attributes]
    # In the order of the index, so that a large commit writes it front to back.
    rows.sort(key=lambda row: (row[0], isinstance(row[1], str), row[1], row[2]))
    connection.executemany("INSERT OR IGNORE INTO attributes VALUES (?, ?, ?)", rows)


def _field(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT field FROM fields WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row[0])
    number = int(connection.execute("SELECT coalesce(max(field), 0) + 1 FROM fields").fetchone()[0])
    insert(connection, "fields", [(number, name)])
    return number


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
        delete(connection, "items", f"key IN ({marks})", chunk)
    set_buried(connection, keys, False)


def retire(connection: Connection, segments: Iterable[SegmentEntry], dropped: npt.NDArray[np.int64]) -> None:
    """Take segments out of the next generation; whoever reads an older one still needs them.

    Args:
        connection: in a write transaction.
        segments: which.
        dropped: the keys of the buried rows that no other segment takes over, int64.
    """
    next_generation = header(connection, "generation") + 1
    for entry in segments:
        rows = connection.execute(f"SELECT {_SEGMENT} FROM segments WHERE number = ?", (entry.number,))
        retired = [(*row[:-1], next_generation) for row in rows.fetchall()]
        delete(connection, "segments", "number = ?", (entry.number,))
        insert(connection, "segments", retired)
    if len(dropped):
        insert(connection, "garbage", [(next_generation, dropped.astype("<i8").tobytes())])


def is_waiting(connection: Connection) -> bool:
    """Whether there are retired segments or dropped items to forget."""
    if connection.execute("SELECT 1 FROM segments WHERE retired IS NOT NULL LIMIT 1").fetchone():
        return True
    garbage = connection.execute("SELECT 1 FROM garbage LIMIT 1").fetchone()
    return garbage is not None and not pending(connection)


def waiting_bytes(connection: Connection) -> int:
    """How many bytes of retired segments wait for readers of older generations."""
    sizes = connection.execute("SELECT bytes FROM segments WHERE retired IS NOT NULL").fetchall()
    return sum(size for (size,) in sizes if isinstance(size, int))


def forget_retired(
    connection: Connection, oldest_reader: int | None, items: int | None
) -> list[SegmentEntry]:
    """Forget retired segments and dropped items that no reader needs.

    Args:
        connection: in a write transaction.
        oldest_reader: the oldest generation that is being read, None for none.
        items: how many items at most, None for all.

    Returns:
        The segments whose files can go once this is committed.
    """
    limit = header(connection, "generation") if oldest_reader is None else oldest_reader
    doomed = connection.execute(f"SELECT {_SEGMENT} FROM segments WHERE retired <= ?", (limit,)).fetchall()
    delete(connection, "segments", "retired <= ?", (limit,))
    # The rows of an unfinished re-encoding may still name dropped items.
    if not pending(connection):
        _forget_dropped(connection, limit, items)
    return [_entry((number, *rest)) for number, _, *rest, _ in doomed]


def _forget_dropped(connection: Connection, limit: int, items: int | None) -> None:
    blobs = connection.execute(
        "SELECT rowid, generation, keys FROM garbage WHERE generation <= ? ORDER BY generation", (limit,)
    ).fetchall()
    for row, generation, blob in blobs:
        if not isinstance(blob, bytes) or len(blob) % 8:
            raise damaged("its list of dropped items makes no sense")
        keys = np.frombuffer(blob, "<i8")
        now = keys[:items]
        delete_items(connection, now.tolist())
        delete(connection, "garbage", "rowid = ?", (row,))
        if len(now) < len(keys):
            insert(connection, "garbage", [(generation, keys[len(now) :].tobytes())])
        if items is not None:
            items -= len(now)
            if not items:
                break


def begin_encoding(connection: Connection, encoding: Encoding) -> None:
    """Make room for an encoding that is to take the place of the current one, instead of any other such."""
    current = header(connection, "encoding")
    delete(connection, "segments", "encoding > ?", (current,))
    delete(connection, "encodings", "encoding > ?", (current,))
    insert_encoding(connection, encoding)


def adopt(connection: Connection, encoding: int) -> None:
    """Make an encoding the current one; its predecessor's segments are retired already."""
    set_header(connection, "encoding", encoding)
    delete(connection, "encodings", "encoding < ?", (encoding,))


def delete_segments(connection: Connection, segments: Iterable[SegmentEntry]) -> None:
    """Forget segments that no reader can have seen."""
    for entry in segments:
        delete(connection, "segments", "number = ?", (entry.number,))


def insert_segment(connection: Connection, encoding: int, entry: SegmentEntry) -> None:
    """Make a segment part of an encoding."""
    insert(connection, "segments", [(entry.number, encoding, *entry[1:], None)])
    set_header(connection, "next_segment", entry.number + 1)
