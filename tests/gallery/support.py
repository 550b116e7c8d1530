"""Vectors, and galleries that hold them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue.checksums import checksum, total_name, wrapped
from cir_infer.gallery.catalogue.schema import CHECKED

DIM = 8


def vectors(count: int, seed: int = 0, dimension: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def names(count: int, prefix: str = "i") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def filled(path: Path, count: int = 10, **options: Any) -> Gallery:
    gallery = Gallery.create(path, dimension=DIM, **options)
    if count:
        gallery.add_vectors(
            ids=names(count),
            vectors=vectors(count),
            metadata=[
                {"number": number, "parity": "odd" if number % 2 else "even"} for number in range(count)
            ],
        )
    return gallery


def rows_of(mask: np.ndarray | None, count: int) -> list[int]:
    """The row numbers that a mask allows."""
    if mask is None:
        return list(range(count))
    return [int(row) for row in np.flatnonzero(np.unpackbits(mask, bitorder="little")[:count])]


_VERSION_1 = (
    ("encodings", "encoding INTEGER PRIMARY KEY, fingerprint TEXT, dimension INTEGER NOT NULL, "
     "dtype TEXT NOT NULL", "encoding, fingerprint, dimension, dtype"),
    ("items", "key INTEGER PRIMARY KEY, id TEXT NOT NULL, metadata TEXT, source TEXT, stamp TEXT",
     "key, id, metadata, source, stamp"),
    ("fields", "field INTEGER PRIMARY KEY, name TEXT NOT NULL", "field, name"),
    ("segments", "number INTEGER PRIMARY KEY, encoding INTEGER NOT NULL, "
     "first_key INTEGER NOT NULL, last_key INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, "
     "sha256 TEXT NOT NULL, retired INTEGER",
     "number, encoding, first_key, last_key, rows, bytes, sha256, retired"),
    ("tombstones", "chunk INTEGER PRIMARY KEY, bits BLOB NOT NULL", "chunk, bits"),
    ("garbage", "generation INTEGER NOT NULL, keys BLOB NOT NULL", "generation, keys"),
)  # fmt: skip


def as_version_1(path: Path) -> None:
    """Make of a closed gallery what the first release would have left: the same content in format 1."""
    connection = sqlite3.connect(path / "catalogue.sqlite", isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("DROP INDEX items_by_id")
    connection.execute("DROP INDEX fields_by_name")
    for table, columns, names in _VERSION_1:
        connection.execute(f"ALTER TABLE {table} RENAME TO newer")
        connection.execute(f"CREATE TABLE {table} ({columns})")
        connection.execute(f"INSERT INTO {table} SELECT {names} FROM newer")
        connection.execute("DROP TABLE newer")
    connection.execute("CREATE INDEX items_by_id ON items (id)")
    connection.execute("CREATE UNIQUE INDEX fields_by_name ON fields (name)")
    header = connection.execute(
        "SELECT name, value FROM header WHERE name IN ('generation', 'next_key', 'next_segment', 'encoding')"
    ).fetchall()
    connection.execute("DROP TABLE header")
    connection.execute("CREATE TABLE header (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    connection.executemany("INSERT INTO header VALUES (?, ?)", header)
    connection.execute("PRAGMA user_version = 1")
    connection.execute("COMMIT")
    connection.close()
    (path / "committed").unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Give every row of a catalogue the checksum that it should have, as a forger would."""
    connection = sqlite3.connect(path / "catalogue.sqlite", isolation_level=None)
    totals = {}
    try:
        connection.execute("BEGIN")
        for table, columns in CHECKED.items():
            rows = connection.execute(f"SELECT rowid, {', '.join(columns)} FROM {table}").fetchall()
            sums = [(checksum(table, row[1:]), row[0]) for row in rows]
            connection.executemany(f"UPDATE {table} SET checksum = ? WHERE rowid = ?", sums)
            totals[total_name(table)] = wrapped(sum(value for value, _ in sums))
        connection.executemany(
            "UPDATE header SET value = ? WHERE name = ?", [(v, n) for n, v in totals.items()]
        )
        header = connection.execute("SELECT name, value FROM header").fetchall()
        connection.executemany(
            "UPDATE header SET checksum = ? WHERE name = ?",
            [(checksum("header", row), row[0]) for row in header],
        )
        connection.execute("COMMIT")
    finally:
        connection.close()


@contextmanager
def other_process(code: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    """Another process that runs a program, with what it reads and what it writes."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        yield other, other.stdin, other.stdout
