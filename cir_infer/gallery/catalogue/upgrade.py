"""From format 1 to 2: every row gets a checksum, every table a total, the gallery a UUID.

It is part of the first transaction that changes a gallery of format 1 (or of `cir-gallery upgrade`), so it is
there whole or not at all, and others read on meanwhile. Reading a gallery of format 1 leaves it as it is.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from cir_infer.gallery.catalogue.checksums import checksum, total_name, wrapped
from cir_infer.gallery.catalogue.schema import CHECKED, PLAIN_VERSION, SCHEMAS, Connection, stored_version

__all__ = ["insert_header", "upgrade"]

_log = logging.getLogger(__name__)


def upgrade(connection: Connection, place: object) -> bool:
    """Bring a catalogue of format 1 to format 2, inside the transaction that is open.

    Returns:
        Whether there was anything to do.
    """
    if stored_version(connection) >= PLAIN_VERSION:
        return False
    _log.info("%s: is upgraded to format %d; older releases cannot read it then", place, PLAIN_VERSION)
    schema = SCHEMAS[PLAIN_VERSION]
    known = dict(connection.execute("SELECT name, value FROM header"))
    for index in ("items_by_id", "fields_by_name"):
        connection.execute(f"DROP INDEX {index}")
    totals = {table: _upgrade_table(connection, table) for table in CHECKED}
    for index in ("items_by_id", "fields_by_name"):
        connection.execute(schema[index])
    connection.execute("DROP TABLE header")
    connection.execute(schema["header"])
    insert_header(connection, known, totals)
    connection.execute(f"PRAGMA user_version = {PLAIN_VERSION}")
    return True


def _upgrade_table(connection: Connection, table: str) -> int:
    """Copy the rows of a table into one with checksums; their total."""
    total = 0

    def summed(*values: Any) -> int:
        nonlocal total
        value = checksum(table, values)
        total += value
        return value

    columns = ", ".join(CHECKED[table])
    connection.create_function("row_checksum", len(CHECKED[table]), summed, deterministic=True)
    connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.execute(SCHEMAS[PLAIN_VERSION][table])
    connection.execute(
        f"INSERT INTO {table} ({columns}, checksum) "
        f"SELECT {columns}, row_checksum({columns}) FROM old_{table}"
    )
    connection.execute(f"DROP TABLE old_{table}")
    return wrapped(total)


def insert_header(
    connection: Connection, known: Mapping[str, int], totals: Mapping[str, int], origin: str | None = None
) -> None:
    """Fill an empty header: the numbers that are given, the totals, and an identity.

    Args:
        connection: in a write transaction.
        known: the numbers.
        totals: by table; 0 for those that are missing.
        origin: for a backup, the identity of the gallery that it is of.
    """
    values: dict[str, int | str | None] = dict(known)
    values |= {total_name(table): totals.get(table, 0) for table in CHECKED}
    values |= {"uuid": str(uuid.uuid4()), "origin": origin, "copied": None, "copied_as": None}
    if origin is not None:
        values |= {"copied": 0, "copied_as": known["generation"]}
    connection.executemany(
        "INSERT INTO header VALUES (?, ?, ?)",
        [(name, value, checksum("header", (name, value))) for name, value in values.items()],
    )
