"""What the catalogue of a backup says of where it comes from, and how items and states are taken over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.checksums import Tally, checked_header, checked_rows, delete
from cir_infer.gallery.catalogue.schema import CHECKED, Connection, damaged, stored_version
from cir_infer.gallery.metadata import metadata as meta
from cir_infer.gallery.rows.segments import SegmentEntry

__all__ = [
    "Lineage",
    "StoredItem",
    "all_segments",
    "bury_only",
    "garbage_keys",
    "item_checksums",
    "lineage",
    "note_copied",
    "skip_generation",
    "sound_items",
    "take_encoding",
]

Keys = npt.NDArray[np.int64]


class Lineage(NamedTuple):
    """Where a backup comes from.

    Attributes:
        origin: the identity of the gallery that it is of.
        copied: the generation of that gallery that it holds, 0 before it holds any.
        copied_as: its own generation since then.
        strayed: whether it is of a newer one: it was changed by somebody else.
    """

    origin: str
    copied: int
    copied_as: int
    strayed: bool


class StoredItem(NamedTuple):
    """An item as the catalogue has it; its metadata as JSON text, None where it has none."""

    key: int
    id: str
    metadata: str | None
    source: str | None
    stamp: str | None

    def record(self, metadata: meta.Encoded | None = None) -> tables.ItemRecord:
        """The same to be stored, with other metadata if that is given."""
        if metadata is None:
            metadata = meta.Encoded(self.metadata, meta.attributes_of(meta.decode(self.metadata)))
        return tables.ItemRecord(self.id, metadata, self.source, self.stamp)


def lineage(connection: Connection) -> Lineage | None:
    """Where a gallery comes from, None where it is no backup."""
    found = checked_header(connection)
    origin = found.get("origin")
    if origin is None:
        return None
    numbers = (found.get("copied"), found.get("copied_as"))
    if not isinstance(origin, str) or not all(isinstance(number, int) for number in numbers):
        raise damaged("what it is a backup of makes no sense")
    copied, copied_as = (int(number or 0) for number in numbers)
    return Lineage(origin, copied, copied_as, copied_as != found["generation"])


def note_copied(connection: Connection, generation: int) -> None:
    """Say that the commit of this transaction will hold a generation of the origin."""
    tables.set_header(connection, "copied", generation)
    tables.set_header(connection, "copied_as", tables.header(connection, "generation") + 1)


def skip_generation(connection: Connection) -> None:
    """Count a commit that changes nothing, so that a backup stays one."""
    before = tables.header(connection, "generation")
    if checked_header(connection)["copied_as"] == before:
        tables.set_header(connection, "copied_as", before + 1)
    tables.set_header(connection, "generation", before + 1)


def all_segments(connection: Connection) -> dict[int, SegmentEntry]:
    """Every segment that the catalogue names, retired ones too, by number."""
    return {row[0]: SegmentEntry(row[0], *row[2:7]) for row in checked_rows(connection, "segments")}


def take_encoding(connection: Connection, encoding: tables.Encoding) -> None:
    """Make an encoding of the origin the current and only one."""
    if checked_rows(connection, "encodings") != [tables.encoding_row(encoding)]:
        delete(connection, "encodings", "1", ())
        tables.insert_encoding(connection, encoding)
    tables.set_header(connection, "encoding", encoding.number)


def garbage_keys(connection: Connection) -> Keys:
    """The keys of items that are dropped but kept for readers, int64."""
    blobs = [np.empty(0, np.int64)]
    for _, blob in checked_rows(connection, "garbage"):
        if not isinstance(blob, bytes) or len(blob) % 8:
            raise damaged("its list of dropped items makes no sense")
        blobs.append(np.frombuffer(blob, "<i8").astype(np.int64))
    return np.concatenate(blobs)


def bury_only(connection: Connection, keys: Keys) -> None:
    """Bury these keys and no others."""
    delete(connection, "tombstones", "1", ())
    tables.set_buried(connection, keys.tolist(), True)


def item_checksums(connection: Connection) -> tuple[Keys, Keys]:
    """The keys of all items and their checksums, int64 (n,) each, by key."""
    pairs = connection.execute("SELECT key, checksum FROM items ORDER BY key")
    try:
        flat = np.fromiter((number for pair in pairs for number in pair), np.int64)
    except (TypeError, ValueError, OverflowError):
        raise damaged("a checksum of items is no number") from None
    return flat[::2], flat[1::2]


def sound_items(connection: Connection, keys: Sequence[int]) -> list[StoredItem]:
    """Some items, to be stored again, by key: none whose damage another checksum would hide.

    Raises:
        GalleryError: one is missing, or does not fit its checksum.
    """
    sealed = stored_version(connection) > 1
    columns = ", ".join(CHECKED["items"]) + (", checksum" if sealed else ", NULL")
    rows: list[tuple[Any, ...]] = []
    for chunk in tables.chunks(keys):
        marks = ",".join("?" * len(chunk))
        rows += connection.execute(f"SELECT {columns} FROM items WHERE key IN ({marks})", chunk)
    rows.sort(key=lambda row: row[0])
    tally = Tally("items")
    problems = [problem for row in rows for problem in tally.add(row[:-1], row[-1])] if sealed else []
    if problems or len(rows) != len(keys):
        raise damaged(problems[0] if problems else "items are missing")
    return [StoredItem(*row[:-1]) for row in rows]
