"""One image to be indexed: where its bytes are, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.errors import ImageError

__all__ = ["MAX_IMAGE_BYTES", "Broken", "Item", "Location", "Territory", "stamp_of"]

MAX_IMAGE_BYTES = 1 << 29
"""The largest image file that is read, 512 MiB."""


@dataclass(frozen=True)
class Location:
    """Where the bytes of an image are: a file, or a stretch of one.

    As text, and so as the `source` of a gallery item, a whole file is its path, and a member of a
    tar file is `shard.tar#offset+size`, which can be read back without the tar's index.
    """

    path: str
    offset: int = 0
    size: int | None = None

    def __str__(self) -> str:
        return self.path if self.size is None else f"{self.path}#{self.offset}+{self.size}"

    @staticmethod
    def parse(text: str) -> Location:
        """The inverse of `str`."""
        path, mark, stretch = text.rpartition("#")
        offset, plus, size = stretch.partition("+")
        if mark and plus and offset.isdecimal() and size.isdecimal() and not os.path.lexists(text):
            return Location(path, int(offset), int(size))
        return Location(text)

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ImageError: the file is missing, not a regular file, too large or cut short.
        """
        try:
            # Opening a pipe would wait for its writer; nothing but regular files is read.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                size = status.st_size if self.size is None else self.size
                if not stat.S_ISREG(status.st_mode):
                    raise ImageError(f"{self}: not a regular file; expected an image file")
                if size > MAX_IMAGE_BYTES:
                    raise ImageError(
                        f"{self}: {size:,} bytes; images of at most {MAX_IMAGE_BYTES:,} are read"
                    )
                file.seek(self.offset)
                data = file.read(size)
        except (OSError, ValueError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ImageError(f"{self}: cannot be read ({reason})") from error
        if self.size is not None and len(data) != self.size:
            raise ImageError(f"{self}: the file ends before the image does; the archive was cut short")
        return data


@dataclass(frozen=True)
class Item:
    """One image to be indexed.

    Attributes:
        id: its name in the gallery.
        location: where its bytes are.
        stamp: changes when the image or its metadata does.
        metadata: JSON values, or None.
    """

    id: str
    location: Location
    stamp: str
    metadata: Mapping[str, Any] | None = None

    def broken(self, reason: str) -> Broken:
        """This item as one that could not be indexed; the reason is preceded by where it is."""
        place = str(self.location)
        return Broken(self.id, place, reason if place in reason else f"{place}: {reason}", self.stamp)


@dataclass(frozen=True)
class Broken:
    """An item that could not be indexed, and why.

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


class Territory(NamedTuple):
    """Which items of a gallery came from a source.

    Attributes:
        root: how their `source` begins.
        owns: of such an item, its id and `source`: whether it is one.
    """

    root: str
    owns: Callable[[str, str], bool]


def stamp_of(size: int, mtime_ns: int, metadata: Mapping[str, Any] | None = None) -> str:
    """What an item was made of, in a few characters: size and time of its file, hash of its metadata."""
    stamp = f"{size}-{mtime_ns}"
    if metadata:
        text = json.dumps(metadata, sort_keys=True, default=str)
        stamp += "-" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return stamp


def file_item(name: str, path: Path, metadata: Mapping[str, Any] | None = None) -> Item | Broken:
    """An item of a whole file."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Broken(name, str(path), f"{path}: cannot be read ({reason})")
    return Item(name, Location(str(path)), stamp_of(status.st_size, status.st_mtime_ns, metadata), metadata)
