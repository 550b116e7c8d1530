"""Tar shards: images inside a plain .tar file, in the manner of WebDataset.

Members are read where they lie; nothing is unpacked, so names that point elsewhere and links have no
effect. What is known about `0001.jpg` lies in `0001.json` (an object) and `0001.txt` (its `caption`),
anywhere in the shard.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import read_json, unique_names
from cir_infer.indexing.archives import archive_members, opened_archive
from cir_infer.indexing.formats import ending_of, looks_like_image
from cir_infer.indexing.items import Broken, Item, Survey, Territory, stamp_of
from cir_infer.indexing.source import Named
from cir_infer.indexing.walking import HIDDEN
from cir_infer.inputs.locations import Location
from cir_infer.inputs.opening import status_of
from cir_infer.inputs.remote import is_address

__all__ = ["TarSource"]

_MAX_SIDE_FILE = 1 << 20
_NAMES_OF_ARCHIVERS = ("__MACOSX", "PaxHeader", "PaxHeaders")


class _Side(NamedTuple):
    name: str
    offset: int
    size: int


class TarSource(Named):
    """The images of a shard; ids are the shard's name without .tar, a slash, and the member's name.

    Args:
        path: of the shard, or its address.
        suffixes: of the members that are images.
    """

    def __init__(self, path: str, suffixes: frozenset[str]) -> None:
        remote = is_address(path)
        self._path = path if remote else os.path.realpath(path)
        self._spelled = path if remote else os.path.abspath(path)  # noqa: PTH100
        self._stem = Path(unquote(path) if remote else path).stem
        self._suffixes = suffixes
        super().__init__(self._path)

    @property
    def territory(self) -> Territory | None:
        """Members of the shard whose id begins with its name."""
        roots = tuple(dict.fromkeys(f"{path}#" for path in (self._path, self._spelled)))
        return Territory(roots, lambda item, _: item.startswith(f"{self._stem}/"))

    def count(self) -> int | None:
        """How many images are in the shard."""
        try:
            return sum(
                isinstance(member, tarfile.TarInfo) and ending_of(member.name) in self._suffixes
                for member in self._members(Survey())
            )
        except DatasetError:
            return None

    def items(self) -> Iterator[Item | Broken]:
        """The images in the order of the archive.

        A damaged header costs the members up to the next sound one.

        Raises:
            DatasetError: not a tar file, or cut short (after the items before).
        """
        self._survey.clear()
        sides, problem = self._sides()
        used: set[str] = set()
        broken: set[str] = set()
        with opened_archive(self._path) as data:
            mtime = status_of(self._path).st_mtime_ns
            try:
                for member in self._members(self._survey):
                    if isinstance(member, Broken):
                        yield member
                    elif self._is_image(member, data):
                        yield from self._item(member, data, mtime, sides, used, broken)
                    elif _side_stem(member.name) is None:
                        self._survey.leave_out(ending_of(member.name) or "without an ending")
            except DatasetError as error:
                problem = error
        for stem in sides.keys() - used:
            for _ in sides[stem]:
                self._survey.leave_out("side files without an image")
        if problem is not None:
            raise problem

    def _item(
        self,
        member: tarfile.TarInfo,
        data: Any,
        mtime: int,
        sides: dict[str, list[_Side]],
        used: set[str],
        broken: set[str],
    ) -> Iterator[Item | Broken]:
        metadata: dict[str, Any] = {}
        name = f"{self._stem}/{member.name}"
        for stem in _stems(member.name):
            for side in sides.get(stem, ()):
                used.add(stem)
                problem = _take(side, data, metadata)
                if problem is not None and side.name not in broken:
                    broken.add(side.name)
                    place = f"{self._path}#{side.offset}+{side.size}"
                    yield Broken(
                        f"{self._stem}/{side.name}",
                        place,
                        f"{self._path}: the side file {shown(side.name)} {problem}; its image has none of it",
                        f"{side.size}-{mtime}-{side.offset}",
                    )
        location = Location(self._path, member.offset_data, member.size)
        try:
            stamp = stamp_of(member.size, mtime, metadata) + f"-{member.offset_data}"
        except (RecursionError, ValueError, TypeError) as error:
            yield Broken(name, str(location), f"{location}: its metadata cannot be stored ({shown(error)})")
            return
        yield Item(name, location, stamp, metadata or None, member.size)

    def _is_image(self, member: tarfile.TarInfo, data: Any) -> bool:
        ending = ending_of(member.name)
        if ending:
            return ending in self._suffixes
        try:
            data.seek(member.offset_data)
            return looks_like_image(data.read(min(16, member.size)))
        except (OSError, ValueError, OverflowError):
            return False

    def _sides(self) -> tuple[dict[str, list[_Side]], DatasetError | None]:
        """The side files by what their names begin with, as far as the archive can be read."""
        sides: dict[str, list[_Side]] = {}
        try:
            for member in self._members(Survey()):
                if isinstance(member, tarfile.TarInfo) and (stem := _side_stem(member.name)) is not None:
                    sides.setdefault(stem, []).append(_Side(member.name, member.offset_data, member.size))
        except DatasetError as error:
            return sides, error
        return sides, None

    def _members(self, survey: Survey) -> Iterator[tarfile.TarInfo | Broken]:
        """The regular files of the archive that no system or archiver put there for itself."""
        for member in archive_members(self._path):
            if isinstance(member, Broken):
                survey.unseen.append(self._path)
                yield member
            elif not member.isreg() or member.issparse():
                if not member.isdir():
                    survey.leave_out("links and other special members")
            elif _is_hidden(member.name):
                survey.leave_out(HIDDEN)
            else:
                yield member


def _is_hidden(name: str) -> bool:
    """Whether a member is hidden (macOS keeps what tar cannot hold in `._1.jpg`) or an archiver's own."""
    parts = name.split("/")
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.partition(".")[0] in _NAMES_OF_ARCHIVERS
        for part in parts
    )


def _side_stem(name: str) -> str | None:
    """What the name of a side file begins with; None for other files."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return stem if ending.lower() in (".json", ".txt") else None


def _stems(name: str) -> list[str]:
    """How side files of an image may begin: WebDataset's key (up to the first dot), then its whole name."""
    stem = os.path.splitext(name)[0]  # noqa: PTH122
    folder, slash, last = stem.rpartition("/")
    return list(dict.fromkeys((folder + slash + last.partition(".")[0], stem)))


def _take(side: _Side, data: Any, metadata: dict[str, Any]) -> str | None:
    """Add what a side file says to the metadata; why it says nothing, None if it does."""
    if side.size > _MAX_SIDE_FILE:
        return f"has {side.size:,} bytes, at most {_MAX_SIDE_FILE:,} are read"
    try:
        data.seek(side.offset)
        raw = data.read(side.size)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (OSError, ValueError, OverflowError) as error:
        return f"cannot be read ({shown(error)})"
    if len(raw) != side.size:
        return "is cut short"
    if side.name.lower().endswith(".txt"):
        metadata["caption"] = text.strip()
        return None
    try:
        found = read_json(text, object_pairs_hook=unique_names)
    except ValueError as error:
        return f"is not JSON that can be read ({shown(error)})"
    if not isinstance(found, dict):
        return f"holds {type(found).__name__}, expected a JSON object"
    metadata.update(found)
    return None
