"""How a picture is stored is found without decoding it, and damage is told whoever looks for it."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from cir_infer.bundle.manifest import CenterCrop, PixelInput, Resize, ToRgb
from cir_infer.errors import ImageError
from cir_infer.inputs.images import load_image
from cir_infer.inputs.preparing import Preparation
from cir_infer.inputs.preprocess import preprocess
from tests.runtime.pictures import chunk, encoded, picture

CLIP = PixelInput(32, 32, (ToRgb(), Resize(32), CenterCrop(32)), exif_orientation=True)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_pillows(kind: str, value: int, opened: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(picture(24, 18), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    given = Image.open(io.BytesIO(data)) if opened else data
    np.testing.assert_array_equal(np.asarray(load_image(given, exif_orientation=True)), np.asarray(expected))


def test_one_picture_of_pillow_in_several_places_is_decoded_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads that decode one together get each other's bytes: from a TIFF another picture, and no error."""
    inside, most, load = 0, 0, PngImagePlugin.PngImageFile.load

    def slowly(image: PngImagePlugin.PngImageFile) -> Any:
        nonlocal inside, most
        if image.tile:  # not decoded yet
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1
        return load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", slowly)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(48, 32), "PNG", exif=exif)
    preparation = Preparation(lambda image: preprocess(image, CLIP))
    one = Image.open(io.BytesIO(data))
    made = [array for batch in preparation.batches([one] * 6, 4) for array in batch]
    preparation.close()
    assert most == 1
    for array in made:
        np.testing.assert_array_equal(array, preprocess(data, CLIP))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_damage_is_told_whether_a_photo_is_turned_upright_or_not(kind: str) -> None:
    """To look for EXIF behind its pixels Pillow decodes a PNG, and one that failed counts as decoded."""
    whole = encoded(picture(24, 18), kind)
    refused = 0
    for at in range(len(whole) // 3, len(whole), 7):
        data = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        answers = []
        for upright in (False, True):
            try:
                answers.append(load_image(data, exif_orientation=upright).tobytes())
            except ImageError:
                answers.append(b"refused")
        assert answers[0] == answers[1], at
        refused += answers[0] == b"refused"
    assert refused or kind != "PNG", "nothing was damaged"


@pytest.mark.parametrize("pieces", [1, 7])
def test_no_changed_byte_of_a_pngs_pixels_is_read_over(pieces: int) -> None:
    """Pillow looks at no checksum of them, and of a smooth picture zlib often makes another one."""
    down, across = np.mgrid[0:50, 0:60]
    smooth = np.stack([down + across, 2 * down, 3 * across], 2).astype(np.uint8)
    whole = encoded(Image.fromarray(smooth), "PNG")
    begin = whole.index(b"IDAT") - 4
    size = int.from_bytes(whole[begin : begin + 4], "big")
    pixels = whole[begin + 8 : begin + 8 + size]
    step = -(-size // pieces)
    parts = b"".join(chunk(b"IDAT", pixels[at : at + step]) for at in range(0, size, step))
    data = whole[:begin] + parts + chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(load_image(data)), smooth)
    for at in range(begin, begin + len(parts)):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        with pytest.raises(ImageError):
            load_image(changed)


@pytest.mark.parametrize("plain", [False, True])
def test_a_jpeg_2000_that_is_cut_anywhere_is_refused(plain: bool) -> None:
    """Cut between its header and its first tile, its decoder made a picture of one colour."""
    whole = encoded(picture(40, 30), "JPEG2000", no_jp2=plain)
    assert load_image(whole).size == (40, 30)
    for end in range(len(whole)):
        with pytest.raises(ImageError):
            load_image(whole[:end])


@pytest.mark.parametrize("upright", [False, True])
def test_a_picture_of_pillow_that_is_damaged_stays_so(upright: bool) -> None:
    """Pillow takes one for decoded when it has failed to decode it, and gives what there is the next time."""
    whole = encoded(picture(64, 64), "PNG")
    at = len(whole) // 2
    image = Image.open(io.BytesIO(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]))
    for _ in range(3):
        with pytest.raises(ImageError, match="truncated or damaged"):
            load_image(image, exif_orientation=upright)


def png_with_notes_behind(*notes: bytes) -> bytes:
    end = chunk(b"IEND", b"")
    return encoded(picture(24, 18), "PNG").removesuffix(end) + b"".join(notes) + end


XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'


def exif_of(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    "notes",
    [
        (chunk(b"eXIf", exif_of(6)),),
        (chunk(b"iTXt", XMP),),
        (chunk(b"iTXt", XMP), chunk(b"eXIf", exif_of(3))),
        (chunk(b"tEXt", b"Comment\0x"),),
        (chunk(b"eXIf", b"no EXIF"),),
    ],
)
def test_an_orientation_behind_a_pngs_pixels_is_followed(notes: tuple[bytes, ...], opened: bool) -> None:
    data = png_with_notes_behind(*notes)
    expected = Image.open(io.BytesIO(data))
    expected.load()
    if b"no EXIF" not in notes[0]:
        expected = ImageOps.exif_transpose(expected)
    given = Image.open(io.BytesIO(data)) if opened else data
    found = load_image(given, exif_orientation=True)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("opened", [False, True])
def test_a_png_is_refused_before_it_is_decoded_to_look_for_exif(
    opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Any] = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded.append)
    head = struct.pack(">IIBBBBB", 11_000, 12_000, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ImageError, match="MiB to decode"):
        load_image(Image.open(io.BytesIO(data)) if opened else data, exif_orientation=True)
    assert not decoded
