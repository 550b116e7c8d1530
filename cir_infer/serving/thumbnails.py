"""Pictures of items, scaled down: only of images that the gallery names, kept in memory up to a limit."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from typing import NamedTuple
from urllib.parse import quote

from cir_infer.errors import ImageError
from cir_infer.inputs.images import as_encoded, decode_image
from cir_infer.inputs.locations import Location
from cir_infer.inputs.opening import status_of
from cir_infer.processes.cache import BoundedCache
from cir_infer.serving.problems import Problem
from cir_infer.serving.settings import THUMBNAILS

__all__ = ["Picture", "Thumbnails", "closest_size", "image_address"]

_KEPT = 64 << 20
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")  # what `quote` would not change, told sooner


class Picture(NamedTuple):
    """A picture as it is sent.

    Attributes:
        tag: changes when the picture does.
        jpeg: None where the caller has it already.
    """

    tag: str
    jpeg: bytes | None


class Thumbnails:
    """Makes pictures of images.

    Args:
        max_pixels: larger images are not decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self._most = max_pixels
        self._kept: BoundedCache[str, bytes] = BoundedCache(_KEPT)

    def picture(self, source: str, size: int, has: str, upright: bool = True) -> Picture:
        """The picture of an image; blocks.

        Args:
            source: where the image is, as the gallery says.
            size: the longest side.
            has: tags that the caller has, as in If-None-Match.
            upright: turned as its EXIF tag says, as its row was or was not: explanations lie over it.

        Raises:
            Problem: the image cannot be read.
        """
        try:
            place = Location.parse(source)
            found = status_of(place.path)
            written = (found.st_mtime_ns, found.st_size, getattr(found, "st_ino", 0))
            version = ("without alpha", upright, source, size, *written)  # the first: how it is made
            tag = hashlib.blake2b(repr(version).encode("utf-8", "replace"), digest_size=12).hexdigest()
            if f'"{tag}"' in has:
                return Picture(tag, None)
            jpeg = self._kept.get(tag)
            if jpeg is None:
                jpeg = self._made(place.read(), size, upright)
                self._kept.put(tag, jpeg, len(jpeg))
        except (ImageError, OSError, ValueError):
            # Its message would name a path of ours.
            raise Problem("not-found", "the image of this item cannot be read") from None
        return Picture(tag, jpeg)

    def _made(self, data: bytes, size: int, upright: bool) -> bytes:
        from PIL import Image

        def part(whole: tuple[int, int]) -> int:
            if whole[0] * whole[1] > self._most:
                raise ImageError("too many pixels")
            return next((by for by in (8, 4, 2) if max(whole) // by >= 2 * size), 1)

        image = decode_image(data, exif_orientation=upright, plan=part).image
        image = as_encoded(image)
        image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=86, progressive=True, optimize=size <= 512)
        return out.getvalue()


def closest_size(asked: int) -> int:
    """The size that is given for one that was asked for."""
    return next((size for size in THUMBNAILS if size >= asked), THUMBNAILS[-1])


@functools.lru_cache(8192)
def image_address(item: str, source: str | None) -> str | None:
    """Where the service gives the image of an item; another source has another address.

    None where there is no image, and for ids that clients resolve away, however they are written.
    """
    if source is None or item in (".", ".."):
        return None
    version = hashlib.blake2b(source.encode("utf-8", "replace"), digest_size=4).hexdigest()
    name = item if _PLAIN.fullmatch(item) else quote(item, safe="")
    return f"/v1/items/{name}/image?v={version}"
