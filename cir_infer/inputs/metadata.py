"""What stands beside the pixels of an image: it turns a picture upright, and never costs it.

Orientation is read from EXIF, however odd the rest of it is. Where a decoder stumbles over something that is
no picture (text, profiles, EXIF, thumbnails), `without_metadata` makes a file of the picture alone, which is
read instead.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "check_end",
    "check_sums",
    "is_cluttered",
    "orientation",
    "stored_orientation",
    "turned",
    "without_metadata",
]

_ORIENTATION = 0x0112
_MOST_PIECES = 1_000_000
_MOST_BYTES = 1 << 29
_MOST_NOTES = 100
_PART = 1 << 20
_BEGIN_2000, _END_2000 = b"\xff\x4f\xff\x51", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PIXEL_TAGS = {
    *(
        254,
        255,
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        274,
        277,
        278,
        279,
        284,
        292,
        293,
        317,
        320,
        322,
        323,
        324,
    ),
    *(325, 332, 338, 339, 347, 512, 513, 514, 530, 531, 532),
}
"""TIFF's tags without which its pixels cannot be read."""


def orientation(image: Image.Image, stream: IO[bytes] | None = None) -> int:
    """How an opened image is stored: EXIF's orientation, 2 to 8; 1 where it is upright or nothing is said.

    No pixel is decoded: to look behind them Pillow would decode a PNG, and whatever is wrong with it would be
    lost here among what is wrong with its notes.

    Args:
        image: opened; decoded already where it has no file.
        stream: its file.
    """
    try:
        noted = image
        if stream is not None and image.format == "PNG" and "exif" not in image.info:
            noted = _notes_behind(stream) or image
        value = _exif(noted).get(_ORIENTATION)
    except Exception:  # of what stands beside it, anything may be wrong
        exif = image.info.get("exif")
        value = _tagged(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1
    return value if isinstance(value, int) and 2 <= value <= 8 else 1


def _exif(image: Image.Image) -> Image.Exif:
    from PIL import Image

    # Not the PNG's own, which decodes it first.
    return Image.Image.getexif(image) if image.format == "PNG" else image.getexif()


def _notes_behind(stream: IO[bytes]) -> Image.Image | None:
    """All notes of a PNG, in one without pixels, where some of them stand behind its pixels."""
    from PIL import Image

    stream.seek(len(_PNG))
    notes: list[bytes] = []
    pixels = behind = False
    for _ in range(_MOST_PIECES):
        start = stream.read(8)
        if len(start) < 8 or len(notes) > _MOST_NOTES:
            break
        size = int.from_bytes(start[:4], "big")
        if start[4:] in (b"eXIf", *_TEXTS):
            notes.append(start + stream.read(size + 4))
            behind |= pixels
        else:
            pixels |= start[4:] == b"IDAT"
            stream.seek(size + 4, 1)
    if not behind:
        return None
    header = b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    begun = (_PNG, struct.pack(">I", 13), header, struct.pack(">I", zlib.crc32(header)))
    plain = b"".join((*begun, *notes, bytes(4), b"IDAT"))
    return Image.open(io.BytesIO(plain), formats=("PNG",))


def turned(image: Image.Image, stored: int) -> Image.Image:
    """The decoded image upright; itself where it is."""
    from PIL.Image import Transpose

    methods = (
        *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    return image if stored == 1 else image.transpose(methods[stored - 2])


def is_cluttered(stream: IO[bytes]) -> bool:
    """Whether a file begins with so many notes that joining them takes a decoder longer than the picture."""
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(0)
    if head.startswith(b"\xff\xd8"):
        return sum(segment[1] in (0xE1, 0xE2, 0xED, 0xFE) for segment in _segments(head)) > _MOST_NOTES
    if head.startswith(b"GIF8"):
        return head.count(b"\x21\xfe") + head.count(b"\x21\xff") > _MOST_NOTES
    return head.startswith(_PNG) and sum(kind in _TEXTS for kind, _ in _chunks(head)) > _MOST_NOTES


def check_sums(stream: IO[bytes]) -> None:
    """Hold the pixels of a PNG against their checksums, over which Pillow reads.

    Raises:
        ValueError: they are damaged.
    """
    stream.seek(len(_PNG))
    for _ in range(_MOST_PIECES):
        start = stream.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            return
        left = int.from_bytes(start[:4], "big")
        if start[4:] != b"IDAT":
            stream.seek(left + 4, 1)
            continue
        found = zlib.crc32(start[4:])
        while left and (part := stream.read(min(left, _PART))):
            found = zlib.crc32(part, found)
            left -= len(part)
        if left or stream.read(4) != found.to_bytes(4, "big"):
            raise ValueError("a checksum of its pixels is another, or missing")


def check_end(stream: IO[bytes]) -> None:
    """Look for a JPEG 2000's mark of the end, which its decoder does not miss where no tile is left.

    Raises:
        ValueError: it is cut short.
    """
    stream.seek(0)
    data = stream.read()
    if data.find(_END_2000, max(data.find(_BEGIN_2000), 0)) < 0:
        raise ValueError("it has no end")


def without_metadata(stream: IO[bytes]) -> bytes | None:
    """The picture of a file alone; None for a format in which nothing stands between a decoder and it."""
    stream.seek(0)
    head = stream.read(8)
    if not head.startswith((b"\xff\xd8", _PNG, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")):
        return None
    if stream.seek(0, 2) > _MOST_BYTES:
        return None
    stream.seek(0)
    data = stream.read()
    try:
        if data.startswith(b"\xff\xd8"):
            return _plain_jpeg(data)
        if data.startswith(_PNG):
            return _plain_png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _plain_gif(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _plain_tiff(data)
    except (IndexError, struct.error):
        return None
    return None


def stored_orientation(stream: IO[bytes]) -> int:
    """As `orientation`, of a JPEG or PNG whose file a decoder cannot open as it is."""
    stream.seek(0)
    data = stream.read()
    if data.startswith(b"\xff\xd8"):
        found = next((s[10:] for s in _segments(data) if s[1] == 0xE1 and s[4:10] == b"Exif\0\0"), b"")
    elif data.startswith(_PNG):
        found = next((content for kind, content in _chunks(data) if kind == b"eXIf"), b"")
    else:
        found = b""
    value = _tagged(found)
    return value if 2 <= value <= 8 else 1


def _tagged(exif: bytes) -> int:
    """The orientation in the first directory of an EXIF block; 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, place)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, place + 8)
                return int(value)
    except struct.error:
        pass
    return 1


def _segments(data: bytes) -> Iterator[bytes]:
    """The segments of a JPEG, markers and all; the last one is all that begins with its first scan."""
    at = 2
    for _ in range(_MOST_PIECES):
        at = data.find(b"\xff", at)
        while 0 <= at < len(data) - 1 and data[at + 1] in (0xFF, 0x00):
            at = data.find(b"\xff", at + 1)
        if not 0 <= at < len(data) - 1:
            return
        marker = data[at + 1]
        if marker == 0xDA:
            yield data[at:]
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            at += 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at : at + 2 + size]
        at += 2 + max(size, 2)


def _plain_jpeg(data: bytes) -> bytes:
    kept = [data[:2]]
    for segment in _segments(data):
        marker = segment[1]
        # JFIF and Adobe say how colours are stored; what else applications write is about the picture.
        colours = (marker == 0xE0 and segment[4:9] == b"JFIF\0") or (
            marker == 0xEE and segment[4:9] == b"Adobe"
        )
        if colours or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
    return b"".join(kept)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of a PNG's chunks; what a decoder checks is not checked here."""
    found: list[tuple[bytes, bytes]] = []
    at = len(_PNG)
    while at + 8 <= len(data) and len(found) < _MOST_PIECES:
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _plain_png(data: bytes) -> bytes:
    kept = [_PNG]
    at = len(_PNG)
    for kind, content in _chunks(data):
        whole = data[at : at + 12 + len(content)]
        at += len(whole)
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(whole)  # with its own checksum, which is checked
        elif kind == b"tRNS":
            kept.append(
                struct.pack(">I", len(content))
                + kind
                + content
                + struct.pack(">I", zlib.crc32(kind + content))
            )
    return b"".join(kept)


def _plain_gif(data: bytes) -> bytes:
    """The header and the first picture, with the transparency that belongs to it."""
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    kept = [data[:at]]
    control = b""
    for _ in range(_MOST_PIECES):
        kind = data[at]
        if kind == 0x2C:
            break
        if kind != 0x21:
            raise IndexError
        start = at
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
        if data[start + 1] == 0xF9:
            control = data[start:at]
    return b"".join((*kept, control, data[at:]))


def _plain_tiff(data: bytes) -> bytes:
    """The same file, whose first directory has only the entries that make pixels, and no other behind it."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    table = data[at + 2 : at + 2 + 12 * count]
    entries = [table[place : place + 12] for place in range(0, len(table) - 11, 12)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _PIXEL_TAGS]
    out = bytearray(data)
    made = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    out[at : at + len(made)] = made
    return bytes(out)
