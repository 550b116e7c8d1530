"""What is fuzzed of pictures: odd segments, chunks and tags around sound pixels, and claims of any size."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir_infer.bundle.manifest import (
    CenterCrop,
    PadSquare,
    PixelInput,
    Resize,
    ScaledJpeg,
    TargetPad,
    ToRgb,
)
from cir_infer.inputs.preprocess import preprocess
from tests.fuzzing.mutations import mutate
from tests.fuzzing.target import Target

_PACKED = (zlib.compress(bytes(10)), zlib.compress(bytes(2_000_000)))
_SIZES = (0, 1, 2, 3, 7, 64, 300, 65_535, 1 << 20, 1 << 27, (1 << 31) - 1, (1 << 32) - 1)
"""Claims of up to 20 megapixels, or of more than are read: what is read takes time for each pixel."""


class Metadata(Target):
    """Pictures with odd segments, chunks and tags around sound or nearly sound pixels, of any claimed
    size."""

    STEPS = (
        (ToRgb(), Resize(40), CenterCrop(32)),
        (ToRgb(), PadSquare(), Resize(40), CenterCrop(32)),
        (ToRgb(), TargetPad(1.25), Resize(32), CenterCrop(32)),
        (ScaledJpeg(), ToRgb(), Resize(32), CenterCrop(32)),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8))
        self._files: dict[str, list[bytes]] = {}
        plain: list[tuple[str, dict[str, Any]]] = [
            (kind, {}) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "BMP")
        ]
        odd: list[tuple[str, dict[str, Any]]] = [
            ("JPEG", {"progressive": True}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("WEBP", {"lossless": True}),
        ]
        for kind, options in plain + odd:
            stream = io.BytesIO()
            picture.save(stream, kind, **options)
            self._files.setdefault(kind, []).append(stream.getvalue())

    def feed(self, rng: random.Random) -> None:
        kind = rng.choice(sorted(self._files))
        data = rng.choice(self._files[kind])
        made = {"JPEG": self._jpeg, "PNG": self._png, "GIF": self._gif, "TIFF": self._tiff}.get(kind)
        data = data if made is None else made(rng, data)
        if rng.random() < 0.5:
            data = self._resized(rng, kind, data)
        if rng.random() < 0.2:
            data = mutate(rng, data, [data])
        spec = PixelInput(32, 32, rng.choice(self.STEPS), exif_orientation=rng.random() < 0.8)
        assert preprocess(data, spec).shape == (32, 32, 3)

    def _noise(self, rng: random.Random) -> bytes:
        known = (
            b"II*\0\x08\0\0\0",
            b"MM\0*\0\0\0\x08",
            b"8BIM",
            b"MPF\0",
            b"Exif\0\0",
            b"ICC_PROFILE\0\1\1",
            b"acsp",
        )
        exif = struct.pack("<HHIHH", 0x0112, 3, 1, rng.randrange(10), 0)
        parts = [
            rng.choice((*known, exif, rng.randbytes(rng.choice((0, 1, 4, 30)))))
            for _ in range(rng.randrange(6))
        ]
        return b"".join(parts)

    def _jpeg(self, rng: random.Random, data: bytes) -> bytes:
        parts = []
        for _ in range(rng.choice((1, 2, 5, 300))):
            content = rng.choice(
                (b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0", b"")
            ) + self._noise(rng)
            marker = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDD, rng.randrange(0xC0, 0x100)))
            length = len(content) + 2 if rng.random() < 0.9 else rng.randrange(1 << 16)
            parts.append(struct.pack(">BBH", 0xFF, marker, length) + content)
        if rng.random() < 0.1:
            last = data.rindex(b"\xff\xda")
            data = data[:last] + data[last:-2] * rng.choice((2, 50, 2000)) + data[-2:]
        return data[:2] + b"".join(parts) + data[2:]

    def _png(self, rng: random.Random, data: bytes) -> bytes:
        parts = []
        kinds = (
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"iCCP",
            b"eXIf",
            b"pHYs",
            b"gAMA",
            b"acTL",
            b"fcTL",
            b"tRNS",
            b"PLTE",
            b"zzZz",
        )
        for _ in range(rng.choice((1, 2, 5, 2000))):
            kind = rng.choice(kinds)
            content = rng.choice((b"a\0\0", b"Raw profile type exif\0\0", b"")) + self._noise(rng)
            if rng.random() < 0.2:
                content = b"a\0\0" + rng.choice(_PACKED)
            crc = zlib.crc32(kind + content) if rng.random() < 0.9 else 7
            parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc))
        at = data.index(b"IDAT") - 4
        return data[:at] + b"".join(parts) + data[at:]

    def _gif(self, rng: random.Random, data: bytes) -> bytes:
        at = 13 + (3 << ((data[10] & 7) + 1))
        parts = []
        for _ in range(rng.choice((1, 3, 5000))):
            block = rng.randbytes(rng.choice((0, 1, 4, 200)))
            parts.append(
                b"\x21" + bytes((rng.choice((0xFE, 0xFF, 0xF9, 1)),)) + bytes((len(block),)) + block + b"\0"
            )
        return data[:at] + b"".join(parts) + data[at:]

    def _tiff(self, rng: random.Random, data: bytes) -> bytes:
        (at,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, at)
        entries = [data[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]
        for _ in range(rng.choice((1, 2, 40))):
            tag = rng.choice(
                (rng.randrange(1 << 16), 256, 257, 258, 259, 273, 274, 277, 278, 279, 322, 323, 34665, 34853)
            )
            entry = struct.pack("<HHII", tag, rng.randrange(14), rng.choice(_SIZES), rng.choice((8, *_SIZES)))
            entries.insert(rng.randrange(len(entries) + 1), entry)
        table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        return data[:4] + struct.pack("<I", len(data)) + data[8:] + table

    def _resized(self, rng: random.Random, kind: str, data: bytes) -> bytes:
        """The same file claiming another size."""
        width, height = rng.choice(_SIZES), rng.choice(_SIZES)
        out = bytearray(data)
        if kind == "PNG":
            struct.pack_into(">II", out, 16, width, height)
            struct.pack_into(">I", out, 29, zlib.crc32(out[12:29]))
        elif kind == "GIF":
            struct.pack_into("<HH", out, 6, width & 0xFFFF, height & 0xFFFF)
        elif kind == "BMP":
            struct.pack_into("<II", out, 18, width, height)
        elif kind == "JPEG":
            at = next((at for at in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if at > 0), 0)
            struct.pack_into(">HH", out, at + 5, height & 0xFFFF, width & 0xFFFF)
        elif kind == "WEBP" and b"VP8L" in data:
            at = data.index(b"VP8L") + 9
            struct.pack_into("<I", out, at, (width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14)
        elif kind == "JPEG2000":
            at = data.index(b"\xff\x4f\xff\x51")
            struct.pack_into(">II", out, at + rng.choice((8, 24)), width, height)
        return bytes(out)
