"""The tables of a catalogue, in each format version that is read."""

from __future__ import annotations

import sqlite3

from cir_infer.errors import GalleryError

__all__ = [
    "APPLICATION_ID",
    "CHECKED",
    "FORMAT_VERSION",
    "HEADER",
    "PLAIN_VERSION",
    "SCHEMAS",
    "Connection",
    "check",
    "damaged",
    "stored_version",
]

FORMAT_VERSION = 3
"""The newest that is read."""
PLAIN_VERSION = 2
"""What a gallery of one vector an item has, so that releases which know no other read it."""
APPLICATION_ID = 0x43495247  # "CIRG"

Connection = sqlite3.Connection

_SHARED = {
    "items_by_id": "CREATE INDEX items_by_id ON items (id)",
    "fields_by_name": "CREATE UNIQUE INDEX fields_by_name ON fields (name)",
    "attributes": "CREATE TABLE attributes (field INTEGER NOT NULL, value NOT NULL, key INTEGER NOT NULL, "
    "PRIMARY KEY (field, value, key)) WITHOUT ROWID",
}
_VERSION_1 = {
    "header": "CREATE TABLE header (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "encodings": "CREATE TABLE encodings (encoding INTEGER PRIMARY KEY, fingerprint TEXT, "
    "dimension INTEGER NOT NULL, dtype TEXT NOT NULL)",
    "items": "CREATE TABLE items (key INTEGER PRIMARY KEY, id TEXT NOT NULL, metadata TEXT, source TEXT, "
    "stamp TEXT)",
    "fields": "CREATE TABLE fields (field INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    "segments": "CREATE TABLE segments (number INTEGER PRIMARY KEY, encoding INTEGER NOT NULL, "
    "first_key INTEGER NOT NULL, last_key INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, "
    "sha256 TEXT NOT NULL, retired INTEGER)",
    "tombstones": "CREATE TABLE tombstones (chunk INTEGER PRIMARY KEY, bits BLOB NOT NULL)",
    "garbage": "CREATE TABLE garbage (generation INTEGER NOT NULL, keys BLOB NOT NULL)",
}
_VERSION_2 = {
    "header": "CREATE TABLE header (name TEXT PRIMARY KEY, value, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "encodings": "CREATE TABLE encodings (encoding INTEGER PRIMARY KEY, fingerprint TEXT, "
    "dimension INTEGER NOT NULL, dtype TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "items": "CREATE TABLE items (key INTEGER PRIMARY KEY, id TEXT NOT NULL, metadata TEXT, source TEXT, "
    "stamp TEXT, checksum INTEGER NOT NULL)",
    "fields": "CREATE TABLE fields (field INTEGER PRIMARY KEY, name TEXT NOT NULL, "
    "checksum INTEGER NOT NULL)",
    "segments": "CREATE TABLE segments (number INTEGER PRIMARY KEY, encoding INTEGER NOT NULL, "
    "first_key INTEGER NOT NULL, last_key INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, "
    "sha256 TEXT NOT NULL, retired INTEGER, checksum INTEGER NOT NULL)",
    "tombstones": "CREATE TABLE tombstones (chunk INTEGER PRIMARY KEY, bits BLOB NOT NULL, "
    "checksum INTEGER NOT NULL)",
    "garbage": "CREATE TABLE garbage (generation INTEGER NOT NULL, keys BLOB NOT NULL, "
    "checksum INTEGER NOT NULL)",
}
SCHEMAS = {1: _VERSION_1 | _SHARED, 2: _VERSION_2 | _SHARED, 3: _VERSION_2 | _SHARED}
"""The statement of every table and index, by format version. Format 3 differs in what `dtype` may say."""

CHECKED = {
    "encodings": ("encoding", "fingerprint", "dimension", "dtype"),
    "items": ("key", "id", "metadata", "source", "stamp"),
    "fields": ("field", "name"),
    "segments": (
        "number", "encoding", "first_key", "last_key", "rows", "bytes", "sha256", "retired",
    ),
    "tombstones": ("chunk", "bits"),
    "garbage": ("generation", "keys"),
}  # fmt: skip
"""The tables whose rows carry a checksum and have a total in the header, with the columns that it covers."""

HEADER = frozenset(
    {
        "generation",  # counts commits
        "next_key",
        "next_segment",
        "encoding",  # the current one
        "uuid",  # of this gallery
        "origin",  # the UUID of the gallery that this is a backup of, or null
        "copied",  # the generation of the origin that a backup holds, or null
        "copied_as",  # the generation of this gallery that holds it; a newer one was changed since
        *(f"{table}_total" for table in CHECKED),
    }
)
"""The names in the header from format 2 on."""


def damaged(what: str) -> GalleryError:
    """The error of a catalogue that makes no sense."""
    return GalleryError(f"the catalogue is damaged ({what}); restore the gallery from a copy")


def stored_version(connection: Connection) -> int:
    """The format version that this transaction sees."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check(connection: Connection, place: object) -> None:
    """Raise `GalleryError` unless the catalogue is one of a format that is read here.

    Args:
        connection: to it.
        place: the gallery's folder, for the message.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise GalleryError(f"{place}: its catalogue is not that of a gallery; check the path")
    version = stored_version(connection)
    if version > FORMAT_VERSION:
        raise GalleryError(
            f"{place}: found gallery format {version}, a newer version than the {FORMAT_VERSION} that is "
            "read here; upgrade cir-infer"
        )
    if version not in SCHEMAS:
        raise GalleryError(
            f"{place}: found gallery format {version}, expected 1 to {FORMAT_VERSION}; restore it from a copy"
        )
    # Anything else than our own statements could hold triggers or views that run on our queries.
    found = {
        name: (kind, sql)
        for name, kind, sql in connection.execute(
            "SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        )
    }
    expected = {name: (_kind(sql), sql) for name, sql in SCHEMAS[version].items()}
    if found != expected:
        raise GalleryError(f"{place}: its catalogue has foreign or missing tables; restore it from a copy")


def _kind(sql: str) -> str:
    return "table" if sql.startswith("CREATE TABLE") else "index"
