"""Tar shards: images inside a plain .tar file, in the manner of WebDataset.

Members are read where they lie; nothing is unpacked, so names that point elsewhere and links have
no effect. `0001.json` beside `0001.jpg` is its metadata (an object), `0001.txt` its `caption`.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cir_infer.errors import DatasetError, shown
from cir_infer.indexing.items import Broken, Item, Location, Territory, stamp_of

__all__ = ["TarSource"]

_MAX_SIDE_FILE = 1 << 20


class TarSource:
    """The images of a shard; ids are the shard's name without .tar, a slash, and the member's name."""

    def __init__(self, path: Path, suffixes: frozenset[str]) -> None:
        self._path = path.absolute()
        self._suffixes = suffixes

    @property
    def territory(self) -> Territory | None:
        """Members of the shard whose id begins with its name."""
        return Territory(f"{self._path}#", lambda item, _: item.startswith(f"{self._path.stem}/"))

    def count(self) -> int | None:
        """How many images are in the shard."""
        try:
            return sum(1 for item in self.items() if isinstance(item, Item))
        except DatasetError:
            return None

    def items(self) -> Iterator[Item | Broken]:
        """The images in the order of the archive.

        Raises:
            DatasetError: not a tar file, or damaged from some point on (after the items before).
        """
        group: list[tarfile.TarInfo] = []
        try:
            # "r:" reads plain tar only: a compressed one could be a bomb, and has no offsets.
            with tarfile.open(self._path, "r:") as archive:
                mtime = self._path.stat().st_mtime_ns
                while (member := archive.next()) is not None:
                    # The archive remembers every member; a shard may have millions.
                    archive.members = []  # type: ignore[attr-defined]
                    if not member.isreg() or member.issparse():
                        continue
                    if group and _stem(group[0]) != _stem(member):
                        yield from self._group(archive, group, mtime)
                        group = []
                    group.append(member)
                    if len(group) > 100:
                        raise tarfile.TarError(f"more than 100 members named {shown(_stem(member)[:60])}")
                yield from self._group(archive, group, mtime)
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
            raise DatasetError(
                f"{self._path}: not an uncompressed tar file, or damaged ({error}); "
                "expected a plain .tar shard"
            ) from error

    def _group(
        self, archive: tarfile.TarFile, group: list[tarfile.TarInfo], mtime: int
    ) -> Iterator[Item | Broken]:
        metadata: dict[str, Any] = {}
        for member in group:
            suffix = os.path.splitext(member.name)[1].lower()  # noqa: PTH122
            if suffix not in (".json", ".txt") or member.size > _MAX_SIDE_FILE:
                continue
            file = archive.extractfile(member)
            text = file.read().decode("utf-8", "replace") if file is not None else ""
            if suffix == ".txt":
                metadata["caption"] = text.strip()
                continue
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                metadata.update(found)
        for member in group:
            if os.path.splitext(member.name)[1].lower() in self._suffixes:  # noqa: PTH122
                location = Location(str(self._path), member.offset_data, member.size)
                stamp = stamp_of(member.size, mtime, metadata) + f"-{member.offset_data}"
                yield Item(f"{self._path.stem}/{member.name}", location, stamp, metadata or None)


def _stem(member: tarfile.TarInfo) -> str:
    """The name up to the first dot of its last part, as WebDataset groups members."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]
