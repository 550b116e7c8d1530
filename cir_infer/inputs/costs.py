"""What decoding an image takes, known from its header, and how much may be taken at once.

Pixels alone do not say it: a WebP takes 18 bytes for each of them while it is decoded, a JPEG in scans 7 to
10, a picture one pixel wide 12, and one that is turned or converted stands in memory twice. `decoding_bytes`
counts all of it before any is taken.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, TypeVar

from cir_infer.errors import ImageError
from cir_infer.processes.fork import PerProcess

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "check_header",
    "check_pixels",
    "decoding",
    "decoding_bytes",
]

T = TypeVar("T")

_PAUSE = 0.002
"""Seconds between two looks at whether there is room."""

MAX_PIXELS = 1 << 27
"""The largest image, 134 megapixels, that is decoded or made on the way by padding or resizing. Larger ones,
often decompression bombs, are an `ImageError`."""

MAX_SIDE = 1 << 20
"""The longest side of an image: filters take memory in proportion to it."""

MAX_BYTES = 6 * MAX_PIXELS
"""The most memory that decoding and converting one image may take, 768 MiB; what does not fit is an
`ImageError` before any of it is taken. Threads together take at most twice as much: they wait for one
another."""

_PER_PIXEL = {"AVIF": 16, "HEIF": 16, "WEBP": 18, "TIFF": 8, "GIF": 5}
"""Bytes a pixel while these formats are decoded, as measured, rounded up: their libraries hold copies of
their own."""

_WHOLE = ("AVIF", "HEIF", "JPEG2000", "TIFF", "WEBP")
"""Formats whose files are read into memory as a whole."""

_PER_ROW = 16
_MOST_SCANS = 1000
_MOST_SCANNED = 1 << 31
"""Scans of a JPEG times its pixels: each scan goes over all of them, however few bytes it has."""

_MOST_STRIPS = 1 << 18
_MOST_TILES = 1 << 12
_MOST_SEGMENTS = 4096


def check_pixels(width: int, height: int, name: str) -> None:
    """Raise `ImageError` for an empty image and for one above `MAX_PIXELS` or `MAX_SIDE`."""
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty ({width} x {height} pixels)")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} is too large ({width} x {height} pixels); at most {MAX_PIXELS} pixels and a side of at "
            f"most {MAX_SIDE} are accepted, scale it down first"
        )


def check_header(stream: IO[bytes], name: str) -> None:
    """Refuse what already opening it would take too much for: a TIFF or JPEG 2000 in millions of pieces.

    Raises:
        ImageError: it is such a file.
    """
    stream.seek(0)
    head = stream.read(4096)
    pieces, most = 0, 1
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        pieces, most = _strips(stream, head), _MOST_STRIPS
    elif head[:4] == b"\xff\x4f\xff\x51" or head[4:8] == b"jP  ":
        pieces, most = _tiles(head), _MOST_TILES
    stream.seek(0)
    if pieces > most:
        raise ImageError(f"{name} is stored in {pieces:,} pieces; at most {most:,} are read, save it again")


def decoding_bytes(image: Image.Image, stream: IO[bytes] | None, turned: bool, part: int, name: str) -> int:
    """Bytes that decoding an opened image, turning it and making it RGB take at most.

    Args:
        image: opened and not decoded.
        stream: its file, where there is one.
        turned: it will be turned, which copies it.
        part: it will be decoded at this part of its size, see `Decoded`.
        name: for messages.

    Raises:
        ImageError: a JPEG in more scans than any that a camera or a program writes.
    """
    width, height = image.width, image.height
    stored = 1 if image.mode in ("1", "L", "P") else 4
    pixels = -(-width // part) * -(-height // part)
    decoding = pixels * _PER_PIXEL.get(image.format or "", stored)
    if image.format in _WHOLE and stream is not None:
        decoding += _length(stream)
    if image.format in ("JPEG", "MPO") and stream is not None:
        decoding += _scanned(stream, width * height, name)
    elif image.format == "JPEG2000":
        decoding += pixels * 6 * len(image.getbands())
    copies = max(2 * stored if turned else stored, stored if image.mode == "RGB" else stored + 4)
    return max(decoding, pixels * copies) + _PER_ROW * height


class _Share:
    """Bytes that a call waits for or has taken; over when the call is.

    Attributes:
        alone: what nobody else may work on meanwhile.
    """

    def __init__(self, size: int, alone: object | None) -> None:
        self.size = size
        self.alone = alone
        self.over = False


class _Budget:
    """Bytes that threads may take together, first come, first served.

    A `threading.Condition` stays locked for ever when an interrupt meets it, and a count that is raised in
    one step and lowered in another can be left raised. So there is neither: what is taken is what the line
    holds, each step changes it by one call of C, and every way out ends a share, twice over.
    """

    def __init__(self) -> None:
        self._line: list[_Share] = []

    def holding(self, size: int, work: Callable[[], T], alone: object | None) -> T:
        mine = _Share(size, alone)
        try:
            try:
                self._line.append(mine)
                while not self._fits(mine):
                    time.sleep(_PAUSE)
                return work()
            finally:
                mine.over = True
        finally:
            mine.over = True
            self._forget()

    def _fits(self, mine: _Share) -> bool:
        """Whether what came before leaves enough, and what this is about; that only ever becomes less."""
        self._forget()
        before = 0
        for share in list(self._line):
            if share is mine:
                break
            if share.over:
                continue
            if mine.alone is not None and share.alone is mine.alone:
                return False
            before += share.size
        return not before or before + mine.size <= 2 * MAX_BYTES

    def _forget(self) -> None:
        for share in [share for share in list(self._line) if share.over]:
            with suppress(ValueError):  # another thread was first
                self._line.remove(share)


_budget = PerProcess(_Budget)


def decoding(size: int, name: str, work: Callable[[], T], alone: object | None = None) -> T:
    """Do what takes so many bytes, once other threads leave enough of them.

    Args:
        size: so many.
        name: of the image, for messages.
        work: does it.
        alone: an opened image that somebody else may decode, too, which Pillow does not stand.

    Raises:
        ImageError: it is more than any image may take.
    """
    if size > MAX_BYTES:
        raise ImageError(
            f"{name} would take {size >> 20:,} MiB to decode; at most {MAX_BYTES >> 20} MiB are taken; scale "
            "it down first, or save it as a JPEG without scans (not progressive)"
        )
    return _budget.get().holding(size, work, alone)


def _length(stream: IO[bytes]) -> int:
    place = stream.tell()
    length = stream.seek(0, 2)
    stream.seek(place)
    return length


def _scanned(stream: IO[bytes], pixels: int, name: str) -> int:
    """Bytes of the coefficients that are kept of a JPEG in several scans; 0 for one in a single scan."""
    place = stream.tell()
    try:
        stream.seek(0)
        several, samples = _frame(stream)
        if not several:
            return 0
        stream.seek(0)
        scans = _occurrences(stream, b"\xff\xda")
    finally:
        stream.seek(place)
    if scans > _MOST_SCANS or scans * pixels > _MOST_SCANNED:
        raise ImageError(
            f"{name} is a JPEG in {scans:,} scans, far more than any program writes; save it again"
        )
    return int(2 * samples * pixels)


def _frame(stream: IO[bytes]) -> tuple[bool, float]:
    """Whether a JPEG has several scans, and how many samples it has for each pixel."""
    samples, components, progressive = 4.0, 0, True
    stream.read(2)
    for _ in range(_MOST_SEGMENTS):
        code = _marker(stream)
        length = stream.read(2)
        if len(length) < 2:
            break
        size = int.from_bytes(length, "big") - 2
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            frame = stream.read(max(size, 0))
            sampling = [frame[at] for at in range(7, len(frame), 3)]
            factors = [(byte >> 4, byte & 15) for byte in sampling] or [(1, 1)]
            most = max(h for h, _ in factors) * max(v for _, v in factors)
            samples = sum(h * v for h, v in factors) / max(most, 1)
            components, progressive = len(sampling), code not in (0xC0, 0xC1, 0xC9)
        elif code == 0xDA:
            return progressive or stream.read(1) != bytes([components]), samples
        else:
            stream.seek(max(size, 0), 1)
    return True, samples


def _marker(stream: IO[bytes]) -> int:
    """The next marker that has a length; 0 at the end, or where there is only noise."""
    for _ in range(_MOST_SEGMENTS):
        byte = stream.read(1)
        if byte != b"\xff":
            if not byte:
                return 0
            continue
        while byte == b"\xff":
            byte = stream.read(1)
        if byte and byte[0] > 1 and not 0xD0 <= byte[0] <= 0xD9:
            return byte[0]
    return 0


def _occurrences(stream: IO[bytes], wanted: bytes) -> int:
    count, rest = 0, b""
    while data := stream.read(1 << 20):
        count += (rest + data).count(wanted)
        rest = data[-1:]
    return count


def _strips(stream: IO[bytes], head: bytes) -> int:
    """Strips or tiles of the first picture of a TIFF; 0 where its directory cannot be read."""
    order = "<" if head[:2] == b"II" else ">"
    large = head[2:4] in (b"+\0", b"\0+")
    try:
        (at,) = (
            struct.unpack_from(order + "Q", head, 8) if large else struct.unpack_from(order + "I", head, 4)
        )
        stream.seek(at)
        (entries,) = struct.unpack(order + ("Q" if large else "H"), stream.read(8 if large else 2))
        size = 20 if large else 12
        table = stream.read(size * min(entries, 4096))
        most = 0
        for start in range(0, len(table) - size + 1, size):
            tag, _, count = struct.unpack_from(order + ("HHQ" if large else "HHI"), table, start)
            if tag in (273, 279, 324, 325):
                most = max(most, count)
        return most
    except (struct.error, OverflowError, ValueError, OSError):
        return 0


def _tiles(head: bytes) -> int:
    """Tiles of a JPEG 2000, from the size segment at the beginning of its codestream."""
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(head) < at + 40:
        return 0
    x, y, x0, y0, tile_x, tile_y = struct.unpack_from(">6I", head, at + 8)
    if not tile_x or not tile_y:
        return 0
    return int(-(-max(x - x0, 0) // tile_x) * -(-max(y - y0, 0) // tile_y))
