"""One image to be indexed: where its bytes are, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.arguments import checked_ids, checked_sources
from cir_infer.gallery.metadata.metadata import encode as encode_metadata
from cir_infer.inputs.locations import Location, link_away
from cir_infer.inputs.opening import Status, status_of, why

__all__ = [
    "Broken",
    "Fault",
    "Item",
    "Stamp",
    "Survey",
    "Territory",
    "digest_of",
    "file_item",
    "is_unicode",
    "stamp_of",
    "unfit",
]

_STAMP = re.compile(r"([^#@]*)(?:#([0-9a-f]{32}))?(?:@([0-9a-f]{16}))?")
_VERSION = re.compile(r"(\d+--?\d+)(?:-([0-9a-f]{16}))?(-\d+)?")
"""Size and time, hash of the metadata, place in a shard or table."""


_LONGEST = 5000
"""Characters of what is told of a broken item; a path has 4,096 bytes at most."""


@dataclass(frozen=True)
class Item:
    """One image to be indexed.

    Attributes:
        id: its name in the gallery.
        location: where its bytes are.
        stamp: changes when the image or its metadata does.
        metadata: JSON values, or None.
        size: bytes of the image, None where that is not known beforehand.
        author: the manifest that gave the id in so many words, None where the id follows from a path.
    """

    id: str
    location: Location
    stamp: str
    metadata: Mapping[str, Any] | None = None
    size: int | None = None
    author: str | None = None

    def broken(self, reason: str) -> Broken:
        """This item as one that could not be indexed; the reason is preceded by where it is."""
        place = str(self.location)
        return Broken(self.id, place, reason if place in reason else f"{place}: {reason}", self.stamp)


class Fault(NamedTuple):
    """Why an image could not be made ready.

    Attributes:
        reason: one line.
        lasting: whether it stays for as long as the image is what it is. What could not be read may be
            readable at the next try.
    """

    reason: str
    lasting: bool = True


@dataclass(frozen=True)
class Broken:
    """An item that could not be indexed, and why. Of texts longer than any path the middle is left out.

    Attributes:
        id: its name, as far as it has one.
        source: where it was found.
        reason: one line.
        stamp: of the item, None where it was not an item yet.
    """

    id: str
    source: str
    reason: str
    stamp: str | None = None

    def __post_init__(self) -> None:
        for name in ("id", "source", "reason"):
            text = getattr(self, name)
            if len(text) > _LONGEST:
                half = (_LONGEST - 5) // 2
                object.__setattr__(self, name, f"{text[:half]} ... {text[-half:]}")


class Territory(NamedTuple):
    """Which items of a gallery came from a source.

    Attributes:
        roots: how their `source` begins, in each spelling that the source may have had.
        owns: of such an item, its id and `source`: whether it is one.
    """

    roots: tuple[str, ...]
    owns: Callable[[str, str], bool]


@dataclass
class Survey:
    """What a source met beside its items, while it was read.

    Attributes:
        left_out: how many entries were left out, by kind: an ending (".heic"), "hidden", ...
        unseen: paths below which there may be items that this pass could not see.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    unseen: list[str] = field(default_factory=list)

    def leave_out(self, kind: str) -> None:
        """Count one entry that is left out; of many kinds the rarer ones come together."""
        if kind not in self.left_out and len(self.left_out) >= _KINDS:
            kind = "others"
        self.left_out[kind] += 1

    def clear(self) -> None:
        """Begin anew."""
        self.left_out.clear()
        self.unseen.clear()


_KINDS = 40


class Stamp(NamedTuple):
    """What the gallery keeps of an item beside its source: what it was made of.

    Attributes:
        version: the item's `stamp`.
        digest: of the image's bytes, None where it is not known.
        author: hash of the manifest that gave the id, None where no manifest did.
    """

    version: str
    digest: str | None = None
    author: str | None = None

    def __str__(self) -> str:
        return (
            self.version
            + (f"#{self.digest}" if self.digest else "")
            + (f"@{self.author}" if self.author else "")
        )

    @staticmethod
    def parse(text: str | None) -> Stamp | None:
        """The inverse of `str`; None where there is none or it is somebody else's."""
        match = _STAMP.fullmatch(text) if text is not None else None
        return Stamp(match[1], match[2], match[3]) if match else None

    def same_image(self, version: str) -> bool:
        """Whether an item's `stamp` says that its image, where it is the same file, is what it was."""
        mine, other = _VERSION.fullmatch(self.version), _VERSION.fullmatch(version)
        if mine is None or other is None:
            return self.version == version
        return mine.group(1, 3) == other.group(1, 3)

    def same_metadata(self, version: str) -> bool:
        """Whether an item's `stamp` says that its source tells of it what it told."""
        mine, other = _VERSION.fullmatch(self.version), _VERSION.fullmatch(version)
        if mine is None or other is None:
            return self.version == version
        return mine[2] == other[2]

    @property
    def size(self) -> int | None:
        """Bytes of the image."""
        size = self.version.partition("-")[0]
        return int(size) if size.isdecimal() and len(size) < 19 else None


def stamp_of(size: int, mtime_ns: int, metadata: Mapping[str, Any] | None = None) -> str:
    """What an item was made of, in a few characters: size and time of its file, hash of its metadata."""
    stamp = f"{size}-{mtime_ns}"
    if metadata:
        text = json.dumps(metadata, sort_keys=True, default=str)
        stamp += "-" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return stamp


def digest_of(data: bytes) -> str:
    """A fingerprint of an image's bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def author_of(path: str) -> str:
    """A short name for a manifest, 16 hexadecimal digits."""
    return hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()


def file_item(
    name: str,
    path: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    status: Status | None = None,
    author: str | None = None,
) -> Item | Broken:
    """An item of a whole file.

    Args:
        name: its id.
        path: of the file, or its address.
        metadata: what is known of it.
        status: of the file, where it was asked for already.
        author: see `Item`.

    Raises:
        CirError: see `status_of`.
    """
    try:
        status = status_of(path) if status is None else status
        stamp = stamp_of(status.st_size, status.st_mtime_ns, metadata)
    except (OSError, ValueError, RecursionError, TypeError) as error:
        reason = f"cannot be read ({why(error)})"
        if isinstance(error, FileNotFoundError) and link_away(path):
            reason = "a link whose target is not there; is a drive not mounted?"
        return Broken(name, path, f"{path}: {reason}")
    return Item(name, Location(path), stamp, metadata, status.st_size, author)


def is_unicode(text: str) -> bool:
    """Whether a gallery can hold a text: names that are not UTF-8 reach Python as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unfit(item: Item) -> Broken | None:
    """Why a gallery cannot hold an item, None if it can."""
    for text in (item.id, str(item.location)):
        if not is_unicode(text):
            if _is_read_as_ascii(text):
                return item.broken(
                    f"its name cannot be read, since Python takes names of files for "
                    f"{sys.getfilesystemencoding()} here (the locale is C and PYTHONUTF8 is 0); unset "
                    "PYTHONUTF8, or set a UTF-8 locale"
                )
            return item.broken(
                f"its name is not UTF-8 ({shown(os.fsencode(text) if _is_path(text) else text)}), which ids "
                "and sources are; rename it, or name it by `id` and a UTF-8 path in a manifest"
            )
    try:
        checked_sources([str(item.location)], checked_ids([item.id]))
        encode_metadata(item.metadata, item.id)
    except GalleryError as error:
        return item.broken(str(error))
    return None


def _is_read_as_ascii(text: str) -> bool:
    """Whether a name is UTF-8, and only this process reads names in another encoding."""
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8" or not _is_path(text):
        return False
    try:
        os.fsencode(text).decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_path(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
