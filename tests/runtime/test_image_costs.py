"""Images are known by what they take, before it is taken; what stands beside the pixels never costs them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cir_infer.bundle.manifest import CenterCrop, PadSquare, PixelInput, Resize, TargetPad, ToRgb
from cir_infer.errors import ImageError
from cir_infer.inputs import costs
from cir_infer.inputs.images import load_image
from cir_infer.inputs.metadata import is_cluttered
from cir_infer.inputs.padding import resize_padded
from cir_infer.inputs.preprocess import preprocess
from tests.gallery.interrupts import Bomb, Interrupt
from tests.runtime.pictures import chunk, encoded, picture

CLIP = PixelInput(32, 32, (ToRgb(), Resize(32), CenterCrop(32)), exif_orientation=True)


def png_of(width: int, height: int) -> bytes:
    """A black PNG, whose pixels are not all there: it is known by its header."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def webp_of(width: int, height: int) -> bytes:
    """A WebP that claims another size."""
    data = bytearray(encoded(picture(8, 8), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, bits & ~0xFFFFFFF | (width - 1) | (height - 1) << 14)
    return bytes(data)


def tiff_in_strips(count: int) -> bytes:
    entries = [
        (256, 3, 1, 8),
        (257, 3, 1, 8),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, count, 200),
        (279, 4, count, 200),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + bytes(300)


def jpeg_2000_in_tiles() -> bytes:
    data = bytearray(encoded(picture(8, 8), "JPEG2000", no_jp2=True))
    struct.pack_into(">II", data, 8, 100_000, 1000)
    struct.pack_into(">II", data, 24, 1, 1)
    return bytes(data)


def jpeg_in_scans(count: int) -> bytes:
    data = encoded(picture(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "one pixel wide": (lambda: png_of(1, 134_000_000), "too large"),
    "too many pixels": (lambda: png_of(20_000, 20_000), "too large"),
    "more after resizing": (lambda: png_of(2, 1_000_000), "resized"),
    "a WebP": (lambda: webp_of(11_584, 11_584), "MiB to decode"),
    "strips": (lambda: tiff_in_strips(10_000_000), "pieces"),
    "tiles": (jpeg_2000_in_tiles, "pieces"),
    "scans": (lambda: jpeg_in_scans(1200), "scans"),
}


@pytest.mark.parametrize("what", LARGE)
def test_what_takes_too_much_is_refused_by_its_header(what: str) -> None:
    make, said = LARGE[what]
    data = make()
    with pytest.raises(ImageError, match=said):
        preprocess(data, CLIP)


MEASURED = """
import sys
from PIL import Image, features
from cir_infer.inputs import costs
from cir_infer.inputs.images import decode_image
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
said = []
honest = costs.decoding_bytes
costs_of = lambda *a: said.append(honest(*a)) or said[-1]
import cir_infer.inputs.images as images
images.decoding_bytes = costs_of
decode_image(sys.argv[2])
before = most()
decoded = decode_image(sys.argv[1]).image
if decoded.mode != "RGB":
    decoded.convert("RGB")
print(most() - before, said[-1])
"""

COSTLY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "progressive": ("JPEG", "RGB", {"progressive": True}),
    "progressive 4:4:4": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "cmyk": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "rgba png": ("PNG", "RGBA", {"compress_level": 1}),
    "palette": ("PNG", "P", {"compress_level": 1}),
    "webp": ("WEBP", "RGB", {"method": 0}),
    "lossless webp": ("WEBP", "RGB", {"lossless": True, "method": 0, "quality": 0}),
    "gif": ("GIF", "P", {}),
    "tiff": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
    "avif": ("AVIF", "RGB", {"speed": 10}),
}


@pytest.mark.parametrize("what", COSTLY)
def test_memory_is_at_most_what_is_said(tmp_path: Any, what: str) -> None:
    kind, mode, options = COSTLY[what]
    large = picture(110, 110).resize((2200, 2200)).convert(mode)
    try:
        (tmp_path / "large").write_bytes(encoded(large, kind, **options))
        (tmp_path / "small").write_bytes(encoded(picture(16, 16).convert(mode), kind, **options))
    except (OSError, KeyError) as error:
        pytest.skip(f"Pillow cannot write it ({error})")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "large", tmp_path / "small"],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, said = map(int, done.stdout.split())
    assert grown <= said + (4 << 20)


def test_threads_wait_for_one_anothers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MAX_BYTES", 100)
    inside, most, lock = 0, 0, threading.Lock()
    enough = threading.Barrier(2)

    def take(size: int, meet: bool) -> None:
        costs.decoding(size, "x", lambda: decode(size, meet))

    def decode(size: int, meet: bool) -> None:
        nonlocal inside, most
        with lock:
            inside += size
            most = max(most, inside)
        if meet:
            enough.wait(120)
        with lock:
            inside -= size

    # Two that fit together do meet inside; many more never take more than twice the limit.
    pair = [threading.Thread(target=take, args=(100, True)) for _ in range(2)]
    many = [threading.Thread(target=take, args=(70, False)) for _ in range(20)]
    for thread in (*pair, *many):
        thread.start()
    for thread in (*pair, *many):
        thread.join(120)
        assert not thread.is_alive()
    assert 0 < most <= 200
    with pytest.raises(ImageError, match="MiB to decode"):
        costs.decoding(101, "x", lambda: None)


def test_interrupts_leave_no_memory_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MAX_BYTES", 100)

    def take(at: int) -> Bomb:
        """Take all there is, interrupted before one instruction of it."""
        bomb = Bomb(at, only=(costs.__file__,))
        try:
            bomb(lambda: costs.decoding(100, "x", lambda: None))
        except Interrupt as error:
            kept.append(error)
        return bomb

    kept: list[Interrupt] = []  # a notebook keeps the last traceback, and with it what its frames hold
    take(0)  # the first call in a process also makes what is counted in
    count = take(0).count
    assert count > 20
    for at in range(1, count + 1):
        assert take(at).fired  # it need not come out: while a generator is closed, 3.14 prints it and goes on
        done: list[int] = []
        # Three times as much as may be taken together: one left taken would be waited for for ever.
        threads = [
            threading.Thread(target=costs.decoding, args=(100, "x", partial(done.append, 1)), daemon=True)
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(done) == 3, f"interrupted before instruction {at}"
    assert len(kept) == count if sys.version_info < (3, 14) else len(kept) > count // 2


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(*[st.integers(0, 70)] * 4),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from(["RGB", "L"]),
    st.integers(0, 255),
    st.booleans(),
)
def test_padded_pictures_are_resized_to_pillows_bytes(
    size: tuple[int, int],
    border: tuple[int, int, int, int],
    target: tuple[int, int],
    mode: str,
    fill: int,
    whole: bool,
) -> None:
    image = picture(*size, mode)
    left, top, right, bottom = border
    width, height = size[0] + left + right, size[1] + top + bottom
    padded = Image.new(mode, (width, height), (fill,) * 3 if mode == "RGB" else fill)
    padded.paste(image, (left, top))
    box = (
        (0.0, 0.0, float(width), float(height))
        if whole
        else (width * 0.1, height * 0.2, width * 0.9, height * 0.7)
    )
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cir_infer.inputs.padding._BAND", 100)
            found = resize_padded(image, border, fill, box, target, resample)
        rows = padded.resize((target[0], height), resample, (box[0], 0, box[2], height))
        expected = rows.resize(target, resample, (0, box[1], target[0], box[3]))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        if width == height and target[0] == target[1] and whole:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(padded.resize(target, resample, box)))


@pytest.mark.parametrize(("width", "height"), [(301, 40), (40, 301), (299, 2)])
@pytest.mark.parametrize("side", [7, 64, 400])
def test_squares_are_resized_to_pillows_bytes(width: int, height: int, side: int) -> None:
    image, whole = picture(width, height), max(width, height)
    padded = Image.new("RGB", (whole, whole), (9, 9, 9))
    across, down = (whole - width) // 2, (whole - height) // 2
    padded.paste(image, (across, down))
    border = (across, down, whole - width - across, whole - height - down)
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        found = resize_padded(image, border, 9, (0, 0, whole, whole), (side, side), resample)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(padded.resize((side, side), resample)))


def test_a_high_picture_is_filtered_along_its_columns_first(monkeypatch: pytest.MonkeyPatch) -> None:
    image, box = picture(7, 300), (0.0, 0.0, 300.0, 300.0)
    border = (146, 0, 147, 0)
    expected = resize_padded(image, border, 9, box, (40, 40), Image.Resampling.BICUBIC)
    monkeypatch.setattr("cir_infer.inputs.padding._LONG", 100)
    found = resize_padded(image, border, 9, box, (40, 40), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("size", [(13_000, 30), (30, 13_000)])
@pytest.mark.parametrize("pad", [PadSquare(7), PadSquare(9, "clip4cir"), TargetPad(1.25)])
@pytest.mark.parametrize("end", [(Resize(64), CenterCrop(32)), (Resize((32, 32), "bicubic"),)])
def test_panoramas_are_not_refused_for_their_border(size: tuple[int, int], pad: Any, end: Any) -> None:
    steps = (ToRgb(), pad, *end)
    found = preprocess(np.asarray(picture(*size)), PixelInput(32, 32, steps))
    assert found.shape == (32, 32, 3)
    if isinstance(pad, PadSquare):
        small = preprocess(
            np.asarray(picture(*size).resize((size[0] // 10, size[1] // 10))), PixelInput(32, 32, steps)
        )
        assert np.abs(found.astype(int) - small).mean() < 3


ODD_EXIF = (
    b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    + struct.pack("<HHII", 0x011A, 10, 1, 38) + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)
)  # fmt: skip


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def with_segments(*segments: bytes) -> bytes:
    data = encoded(picture(48, 32), "JPEG", quality=95)
    return data[:2] + b"".join(segments) + data[2:]


def png_with(*chunks: bytes) -> bytes:
    data = encoded(picture(48, 32), "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def gif_with(*extensions: bytes) -> bytes:
    data = encoded(picture(48, 32, "P"), "GIF")
    at = 13 + (3 << ((data[10] & 7) + 1))
    return data[:at] + b"".join(extensions) + data[at:]


def tiff_with(*entries: tuple[int, int, int, int]) -> bytes:
    data = encoded(picture(48, 32), "TIFF")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    table = data[at + 2 : at + 2 + 12 * count] + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    rest = struct.pack("<H", count + len(entries)) + table + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + rest


def long_text() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "node " * 600_000, zip=True)
    return encoded(picture(48, 32), "PNG", pnginfo=notes)


BESIDE: dict[str, tuple[bytes, bytes]] = {
    "a senseless rational": (with_segments(segment(0xE1, ODD_EXIF)), with_segments()),
    "a damaged profile": (
        with_segments(segment(0xE2, b"ICC_PROFILE\0\x09\x01" + bytes(20))),
        with_segments(),
    ),
    "half a thumbnail": (with_segments(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f")), with_segments()),
    "a table of other pictures": (
        with_segments(segment(0xE2, b"MPF\0II*\0" + b"\xff" * 40)),
        with_segments(),
    ),
    "Photoshop's block": (
        with_segments(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x03abc")),
        with_segments(),
    ),
    "thousands of notes": (with_segments(*[segment(0xFE, b"note")] * 5000), with_segments()),
    "thousands of EXIF blocks": (with_segments(*[segment(0xE1, b"Exif\0\0ab")] * 5000), with_segments()),
    "a text of megabytes": (long_text(), png_with()),
    "a profile of megabytes": (encoded(picture(48, 32), "PNG", icc_profile=bytes(2_000_000)), png_with()),
    "a text with a wrong checksum": (png_with(chunk(b"tEXt", b"a\0b", 7)), png_with()),
    "a damaged text": (png_with(chunk(b"zTXt", b"a\0\0no zlib"), chunk(b"iTXt", b"x")), png_with()),
    "a damaged time": (png_with(chunk(b"pHYs", b"\0"), chunk(b"gAMA", b"")), png_with()),
    "an EXIF chunk of noise": (png_with(chunk(b"eXIf", b"\xff" * 100)), png_with()),
    "thousands of texts": (png_with(*[chunk(b"tEXt", b"a\0b")] * 5000), png_with()),
    "thousands of comments": (gif_with(*[b"\x21\xfe\x01x\0"] * 50_000), gif_with()),
    "a tag of noise": (
        tiff_with((34665, 4, 1, 0xFFFFFFF0), (34853, 4, 1, 3), (282, 5, 1, 0xFFFFFF0)),
        tiff_with(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
def test_what_stands_beside_the_pixels_costs_nothing(what: str) -> None:
    odd, plain = BESIDE[what]
    expected = np.asarray(load_image(plain).convert("RGB"))
    found = np.asarray(load_image(odd).convert("RGB"))
    np.testing.assert_array_equal(found, expected)
    assert preprocess(odd, CLIP).shape == (32, 32, 3)


NOTE, PNG_NOTE = segment(0xFE, b"note"), chunk(b"tEXt", b"a\0b")
PROFILE = b"ICC_PROFILE\0\x01\x01" + b"\xff\xe1\xff\xfe" * 500


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (with_segments(*[NOTE] * 101), True),
        (with_segments(*[NOTE] * 100), False),
        (with_segments(segment(0xE2, PROFILE)), False),
        (png_with(*[PNG_NOTE] * 101), True),
        (png_with(*[PNG_NOTE] * 100), False),
        (png_with(chunk(b"prIv", b"tEXt" * 500)), False),
    ],
)
def test_notes_are_counted_where_they_stand(data: bytes, found: bool) -> None:
    """Not in what looks like some, and cut off anywhere."""
    assert is_cluttered(io.BytesIO(data)) is found
    for end in range(0, len(data), 97):
        assert is_cluttered(io.BytesIO(data[:end])) in (found, False)


def test_odd_exif_still_turns_a_photo_upright() -> None:
    odd = with_segments(segment(0xE1, ODD_EXIF))
    upright = np.asarray(load_image(odd, exif_orientation=True))
    assert upright.shape == (48, 32, 3)
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(load_image(odd)), -1))


def test_a_damaged_picture_stays_damaged() -> None:
    for data in (with_segments()[:-400], png_with()[:-400], png_with(chunk(b"IDAT", b"no", 1))):
        with pytest.raises(ImageError, match="truncated or damaged"):
            load_image(data)
