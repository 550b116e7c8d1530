"""Which pictures a sequence holds, told without decoding them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.inputs.images import ImageLike

__all__ = ["Contents", "contents_of_pictures", "digest_of_pictures", "file_said"]

_LEAST, _BYTES = 256, 128 << 20
"""Of a sequence the content of so many pictures is looked at, or of so many as have about these bytes."""


def digest_of_pictures(images: Sequence[ImageLike]) -> str:
    """Sha256 over pictures in their order, in hexadecimal.

    Of files their places, sizes and times are looked at, of other pictures the content. A sequence that makes
    its pictures when they are asked for tells by `told(row)` what it makes each of.
    """
    found, told = hashlib.sha256(), getattr(images, "told", None)
    for row in range(len(images)):
        found.update(_said(images[row]) if told is None else told(row).encode())
    return found.hexdigest()


def file_said(path: str | os.PathLike[str]) -> str:
    """The place, size and time of a file; one that is not there has none."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - of a million files
    except (OSError, ValueError):
        return f"{path!r} missing\n"
    return f"{os.path.abspath(path)!r} {stat.st_size} {stat.st_mtime_ns}\n"  # noqa: PTH100


@dataclass(frozen=True)
class Contents:
    """Which pictures there are, wherever they lie and whenever they were copied there.

    Attributes:
        count: of them.
        bytes: of their files; 0 where they are in no files of their own.
        digest: sha256 over the sizes of all files and the content of some of the pictures, evenly spread.
    """

    count: int
    bytes: int
    digest: str

    def __str__(self) -> str:
        size = f" in files of {self.bytes:,} bytes" if self.bytes else ""
        return f"{self.count:,}{size}"


def contents_of_pictures(sequences: Iterable[Sequence[ImageLike]]) -> Contents:
    """What sequences of pictures hold; one that comes twice counts once.

    A data set may be moved and copied between two looks. Pictures that are made when they are asked for, or
    lie in one file, have no sizes.
    """
    found, count, size = hashlib.sha256(), 0, 0
    for images in {id(images): images for images in sequences}.values():
        rows = len(images)
        count += rows
        found.update(f"{rows}\n".encode())
        if not rows:
            continue
        first = images[0]
        each = _size(first) if _is_path(first) else np.asarray(first).nbytes
        every = max(1, rows // max(_LEAST, _BYTES // max(each, 1)))
        for row in range(0, rows, 1 if _is_path(first) else every):
            image: Any = images[row]
            if _is_path(image):
                size += (of_file := max(_size(image), 0))
                found.update(f"{of_file}\n".encode())
            if row % every == 0:
                found.update(_content(image))
    return Contents(count, size, found.hexdigest())


def _is_path(image: object) -> bool:
    return isinstance(image, (str, os.PathLike))


def _size(path: Any) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - of a million files
    except (OSError, ValueError):
        return -1


def _content(image: Any) -> bytes:
    if not _is_path(image):
        return _said(image)
    try:
        return hashlib.sha256(Path(image).read_bytes()).digest()
    except (OSError, ValueError):  # an address, or nothing: whoever reads the picture says so
        return b"unread"


def _said(image: Any) -> bytes:
    if isinstance(image, (str, os.PathLike)):
        return file_said(image).encode(errors="surrogateescape")
    content = np.frombuffer(image, np.uint8) if isinstance(image, bytes) else np.asarray(image)
    return f"{content.dtype} {content.shape} {hashlib.sha256(content.tobytes()).hexdigest()}\n".encode()
