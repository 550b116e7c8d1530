"""Which pictures a sequence holds, told without decoding them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cir_infer.inputs.images import ImageLike

__all__ = ["digest_of_pictures", "file_said"]


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


def _said(image: Any) -> bytes:
    if isinstance(image, (str, os.PathLike)):
        return file_said(image).encode(errors="surrogateescape")
    content = np.frombuffer(image, np.uint8) if isinstance(image, bytes) else np.asarray(image)
    return f"{content.dtype} {content.shape} {hashlib.sha256(content.tobytes()).hexdigest()}\n".encode()
