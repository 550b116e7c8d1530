"""A disk in memory that knows what has been synced, fed by the record that faults.c writes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Operation(NamedTuple):
    """One line of the record: c create, w write, t truncate, s sync, r rename, u unlink, d mkdir, m mark."""

    kind: str
    offset: int
    name: str
    second: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.kind} {Path(self.name).name}"


def read_record(path: Path) -> Iterator[Operation]:
    record = path.read_bytes()
    at = 0
    while at < len(record):
        end = record.index(b"\n", at)
        kind, offset, first, second, size = record[at:end].split()
        cuts = [end + 1]
        for length in (first, second, size):
            cuts.append(cuts[-1] + int(length))
        name, other, data = (record[a:b] for a, b in pairwise(cuts))
        yield Operation(kind.decode(), int(offset), name.decode(), other.decode(), data)
        at = cuts[-1]


Change = tuple[int, bytes | None]
"""Bytes written at an offset, or a new length (None)."""


@dataclass
class File:
    """What is on the disk, and what has been done to the file since its last sync."""

    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)

    def contents(self, changes: list[Change]) -> bytes:
        data = bytearray(self.durable)
        for offset, written in changes:
            if written is None:
                del data[offset:]
                data.extend(bytes(offset - len(data)))
            else:
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(written)] = written
        return bytes(data)


@dataclass
class Folder:
    """Names on the disk, and names now."""

    durable: dict[str, File | Folder] = field(default_factory=dict)
    now: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """Applies operations below a root folder, which is empty and durable at the start."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._top = Folder()

    def apply(self, operation: Operation) -> None:
        parent, name = self._find(operation.name)
        node = parent.now.get(name) if name else self._top
        if operation.kind == "c":
            parent.now[name] = File()
        elif operation.kind == "d":
            parent.now[name] = Folder()
        elif operation.kind == "u":
            del parent.now[name]
        elif operation.kind == "r":
            other, new = self._find(operation.second)
            other.now[new] = parent.now.pop(name)
        elif operation.kind == "s":
            if isinstance(node, Folder):
                node.durable = dict(node.now)
            elif node is not None:
                node.durable, node.pending = node.contents(node.pending), []
        elif isinstance(node, File):
            node.pending.append((operation.offset, operation.data if operation.kind == "w" else None))

    def _find(self, path: str) -> tuple[Folder, str]:
        assert path.startswith(self._root), path
        parts = [part for part in path[len(self._root) :].split("/") if part]
        folder = self._top
        for part in parts[:-1]:
            folder = folder.now[part]  # type: ignore[assignment]
        return folder, parts[-1] if parts else ""

    def write_out(self, target: Path, variant: str, rng: random.Random) -> None:
        """What the disk may hold after a power failure now.

        Args:
            target: an empty folder.
            variant: "everything", "nothing that was not synced" or "a random part".
            rng: chooses the part.
        """
        self._write(self._top, target, variant, rng)

    def _write(self, folder: Folder, target: Path, variant: str, rng: random.Random) -> None:
        for name in sorted(folder.durable.keys() | folder.now.keys()):
            use_now = variant == "everything" or (variant == "a random part" and rng.random() < 0.5)
            node = (folder.now if use_now else folder.durable).get(name)
            if isinstance(node, Folder):
                (target / name).mkdir()
                self._write(node, target / name, variant, rng)
            elif node is not None:
                (target / name).write_bytes(node.contents(_kept(node.pending, variant, rng)))


def _kept(pending: list[Change], variant: str, rng: random.Random) -> list[Change]:
    if variant == "everything":
        return pending
    if variant != "a random part":
        return []
    kept: list[Change] = []
    for offset, data in pending:
        if rng.random() < 0.5:
            if data is not None and rng.random() < 0.3:  # a disk writes sectors
                data = data[: rng.randrange(len(data) + 1) // 512 * 512]
            kept.append((offset, data))
    return kept
