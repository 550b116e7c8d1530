"""Checksums: every row of the catalogue has one, and the header has their total for every table.

The checksum of a row is the first eight bytes (BLAKE2b with a digest of eight bytes, as a signed number,
least significant byte first) over the name of its table and its columns, each of them written as

    -                       for null
    i<decimal digits>;      for a whole number
    t<bytes>:<UTF-8>        for a text
    b<bytes>:<bytes>        for a blob
    f<shortest digits>;     for any other number

A total is the sum of the checksums modulo 2^64, as a signed number. So an altered row does not fit its own
checksum, and a row that is missing, doubled or put back does not fit the total. Whoever changes a table
does it here, and pays for the rows that change only.

Rows of `attributes` have none: they follow from the metadata of the items, and `verify` compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from cir_infer.errors import shown
from cir_infer.gallery.catalogue.schema import CHECKED, HEADER, Connection, damaged, stored_version

__all__ = [
    "Tally",
    "checked_header",
    "checked_rows",
    "checksum",
    "delete",
    "insert",
    "problems",
    "set_header",
    "total_name",
    "wrapped",
]


_LONG = ("tombstones", "garbage")
"""Tables whose rows are too long to be remembered."""


def checksum(table: str, values: Iterable[Any]) -> int:
    """The checksum of a row, a signed 64-bit number."""
    parts = [table.encode()]
    for value in values:
        if value is None:
            parts.append(b"-")
        elif isinstance(value, str):
            data = value.encode()
            parts += (b"t%d:" % len(data), data)
        elif isinstance(value, int):
            parts.append(b"i%d;" % value)
        elif isinstance(value, bytes):
            parts += (b"b%d:" % len(value), value)
        else:
            parts.append(f"f{float(value)!r};".encode())
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8).digest(), "little", signed=True)


@lru_cache(maxsize=4096, typed=True)
def _remembered(table: str, *values: Any) -> int:
    """The checksum of a short row; every commit and snapshot looks at the same ones again."""
    return checksum(table, values)


def wrapped(total: int) -> int:
    """A sum of checksums modulo 2^64, as a signed number."""
    return ((total + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def total_name(table: str) -> str:
    """What the total of a table is called in the header."""
    return f"{table}_total"


# ---- changing


def set_header(connection: Connection, name: str, value: int | str | None) -> None:
    """Set one value of the header."""
    connection.execute(
        "UPDATE header SET value = ?, checksum = ? WHERE name = ?",
        (value, checksum("header", (name, value)), name),
    )


def insert(connection: Connection, table: str, rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows, each with the columns of `CHECKED`, and add them to the total."""
    total = 0

    def with_checksums() -> Iterator[tuple[Any, ...]]:
        nonlocal total
        for row in rows:
            value = checksum(table, row)
            total += value
            yield (*row, value)

    columns = CHECKED[table]
    connection.executemany(
        f"INSERT INTO {table} ({', '.join(columns)}, checksum) VALUES ({'?, ' * len(columns)}?)",
        with_checksums(),
    )
    _add(connection, table, total)


def delete(connection: Connection, table: str, condition: str, parameters: Sequence[Any]) -> None:
    """Delete the rows that meet a condition, and take them out of the total."""
    found = connection.execute(f"SELECT checksum FROM {table} WHERE {condition}", parameters).fetchall()
    if not found:
        return
    if not all(isinstance(value, int) for (value,) in found):
        raise damaged(f"a checksum of {table} is no number")
    connection.execute(f"DELETE FROM {table} WHERE {condition}", parameters)
    _add(connection, table, -sum(value for (value,) in found))


def _add(connection: Connection, table: str, change: int) -> None:
    if change:
        set_header(connection, total_name(table), wrapped(_total(connection, table) + change))


def _total(connection: Connection, table: str) -> int:
    row = connection.execute("SELECT value FROM header WHERE name = ?", (total_name(table),)).fetchone()
    if row is None or not isinstance(row[0], int):
        raise damaged(f"no total of {table} in its header")
    return int(row[0])


# ---- reading


def checked_header(connection: Connection) -> dict[str, Any]:
    """All of the header, in any format version.

    Raises:
        GalleryError: a value does not fit its checksum.
    """
    if stored_version(connection) == 1:
        return dict(connection.execute("SELECT name, value FROM header"))
    found = {}
    for name, value, stored in connection.execute("SELECT name, value, checksum FROM header"):
        if stored != _remembered("header", name, value):
            raise damaged("its header was altered")
        found[name] = value
    if found.keys() != HEADER:
        raise damaged("its header is not complete")
    return found


def checked_rows(connection: Connection, table: str) -> list[tuple[Any, ...]]:
    """All rows of a small table, with the columns of `CHECKED`, in the order of their first column.

    Raises:
        GalleryError: a row does not fit its checksum, or one is missing.
    """
    columns = ", ".join(CHECKED[table])
    if stored_version(connection) == 1:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()
    rows, total = [], 0
    short = table not in _LONG
    for *row, stored in connection.execute(f"SELECT {columns}, checksum FROM {table} ORDER BY 1"):
        if stored != (_remembered(table, *row) if short else checksum(table, row)):
            raise damaged(f"a row of {table} was altered")
        total += stored
        rows.append(tuple(row))
    if wrapped(total) != _total(connection, table):
        raise damaged(f"rows of {table} are missing")
    return rows


def problems(connection: Connection, table: str) -> Iterator[str]:
    """What is wrong with the checksums of a table, one line each; nothing in format 1, which has none."""
    if stored_version(connection) == 1:
        return
    tally = Tally(table)
    columns = ", ".join(CHECKED[table])
    for *row, stored in connection.execute(f"SELECT {columns}, checksum FROM {table} ORDER BY 1"):
        yield from tally.add(row, stored)
    yield from tally.close(connection)


class Tally:
    """Rows of a table against their checksums, and all of them against the total in the header."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._total = 0

    def add(self, row: Sequence[Any], stored: Any) -> Iterator[str]:
        """What is wrong with one row; the row has the columns of `CHECKED`."""
        if stored != checksum(self._table, row):
            yield f"catalogue, {self._table} {shown(row[0], 60)}: was altered (its checksum does not fit)"
        self._total += stored if isinstance(stored, int) else 0

    def close(self, connection: Connection) -> Iterator[str]:
        """What is wrong with all of them, once every row was added."""
        if wrapped(self._total) != _total(connection, self._table):
            yield f"catalogue, {self._table}: rows are missing or foreign (their total does not fit)"
