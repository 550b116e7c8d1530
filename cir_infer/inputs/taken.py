"""Images and texts of an iterator: asked for the next, it may close the last, or make another of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

import numpy as np

from cir_infer.errors import ImageError
from cir_infer.inputs.images import decode_image
from cir_infer.inputs.open_files import contents

__all__ = ["taken"]


def taken(images: Any, decode: bool = True) -> Any:
    """The same images, or texts, of which several may be held at a time.

    Those of a list stay what they are. An iterator may show each frame in the one Pillow image or array that
    it has (`ImageSequence.Iterator` does), or close a file behind it, so what it gives is copied before it is
    asked for the next.

    Args:
        images: any images; what is not iterable is left to whoever checks that.
        decode: also files of one picture that Pillow has opened and not decoded; otherwise they are left,
            since many together would not fit into memory.
    """
    if isinstance(images, (Sequence, Set, Mapping, np.ndarray)) or not isinstance(images, Iterable):
        return images
    return (_as_it_is(image, decode) for image in images)


def _as_it_is(image: Any, decode: bool) -> Any:
    """An image that nobody else changes; where that fails the image itself, of which it is said later."""
    with suppress(ImageError, ValueError):
        if isinstance(image, np.ndarray):
            return image.copy()
        if isinstance(image, list):  # of captions
            return list(image)
        if isinstance(image, bytearray):
            return bytes(image)
        if isinstance(image, memoryview):
            return image.tobytes()
        if hasattr(image, "getbands"):
            if not decode and getattr(image, "tile", None) and not _has_frames(image):
                return image
            decode_image(image)  # which refuses what would take too much
            copied = image.copy()
            copied.filename = getattr(image, "filename", None)  # for messages
            return copied
        return contents(image)
    return image


def _has_frames(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of a damaged file
        return True
