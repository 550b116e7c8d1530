"""Preprocessing: the authors' tensors bit for bit, and torchvision's geometry for every size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer.bundle.manifest import (
    CenterCrop,
    DivideByMaximum,
    PadSquare,
    PixelInput,
    Resize,
    ScaledJpeg,
    Step,
    TargetPad,
    ToRgb,
)
from cir_infer.errors import ImageError
from cir_infer.inputs.preprocess import decode, preprocess

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocessing"
"""Inputs of the authors' own eval transforms, as bytes (before / 255 and normalisation)."""

AUTHORS: dict[str, tuple[int, tuple[Step, ...]]] = {
    "artemis": (224, (ToRgb(), PadSquare(255), Resize(256), CenterCrop(224))),
    "clip4cir_targetpad288": (288, (TargetPad(1.25), Resize(288, "bicubic"), CenterCrop(288), ToRgb())),
    "clip4cir_squarepad224": (
        224,
        (PadSquare(0, "clip4cir"), Resize(224, "bicubic"), CenterCrop(224), ToRgb()),
    ),
    "tirg": (224, (ToRgb(), Resize(224), CenterCrop(224))),
}

sides = st.integers(1, 60)
few = settings(max_examples=60)


@pytest.mark.parametrize("case", AUTHORS)
def test_the_authors_tensors_bit_for_bit(case: str) -> None:
    size, steps = AUTHORS[case]
    golden = np.load(GOLDEN / f"{case}.npz")
    for name in golden:
        out = preprocess(GOLDEN / f"{name}.jpg", PixelInput(size, size, steps))
        np.testing.assert_array_equal(out, golden[name], err_msg=name)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@few
@given(width=sides, height=sides, fill=st.integers(0, 255))
def test_padding_as_artemis_pads(width: int, height: int, fill: int) -> None:
    side = max(width, height)
    image = picture(width, height)
    out = preprocess(image, PixelInput(side, side, (ToRgb(), PadSquare(fill, "artemis"))))
    left, top = (side - width) // 2, (side - height) // 2
    expected = np.full((side, side, 3), fill, np.uint8)
    expected[top : top + height, left : left + width] = image
    np.testing.assert_array_equal(out, expected)


@few
@given(width=sides, height=sides)
def test_padding_as_clip4cir_pads(width: int, height: int) -> None:
    side = max(width, height)
    across, down = int((side - width) / 2), int((side - height) / 2)
    image = picture(width, height)
    spec = PixelInput(height + 2 * down, width + 2 * across, (PadSquare(0, "clip4cir"), ToRgb()))
    out = preprocess(image, spec)
    assert out.any(axis=(1, 2)).sum() <= height
    np.testing.assert_array_equal(out[down : down + height, across : across + width], image)
    assert out.astype(int).sum() == image.astype(int).sum(), "the border is black"


@few
@given(width=sides, height=sides, ratio=st.floats(1, 4))
def test_target_padding_brings_the_ratio_down(width: int, height: int, ratio: float) -> None:
    longer, shorter = max(width, height), min(width, height)
    short = shorter if longer / shorter < ratio else shorter + 2 * max(int((longer / ratio - shorter) / 2), 0)
    size = (short, longer) if width > height else (longer, short)
    out = preprocess(picture(width, height), PixelInput(*size, (TargetPad(ratio), ToRgb())))
    assert longer / short < ratio or short >= shorter
    assert out.shape == (*size, 3)


@few
@given(values=st.lists(st.integers(0, 255), min_size=3, max_size=30), channel=st.integers(0, 2))
def test_a_picture_is_divided_by_its_largest_value(values: list[int], channel: int) -> None:
    image = np.zeros((1, len(values), 3), np.uint8)
    image[0, :, channel] = values
    out = preprocess(image, PixelInput(1, len(values), (ToRgb(), DivideByMaximum())))
    exact = image * 255.0 / max(1, max(values))
    assert np.abs(out - exact).max() <= 0.5
    assert (out == image).all() or out.max() == 255


@few
@given(width=sides, height=sides, size=st.integers(1, 60))
def test_half_a_pixel_goes_to_the_even_side_or_to_the_left_and_the_top(
    width: int, height: int, size: int
) -> None:
    size = min(size, width, height)
    image = picture(width, height)
    for rounding, half in (("even", round), ("down", int)):
        out = preprocess(image, PixelInput(size, size, (ToRgb(), CenterCrop(size, rounding))))  # type: ignore[arg-type]
        left, top = half((width - size) / 2), half((height - size) / 2)
        np.testing.assert_array_equal(out, image[top : top + size, left : left + size])


@few
@given(width=sides, height=sides, size=st.integers(1, 40), kind=st.sampled_from(["bilinear", "bicubic"]))
def test_resizing_as_torchvision_resizes(width: int, height: int, size: int, kind: str) -> None:
    longer = int(size * max(width, height) / min(width, height))
    new = (size, longer) if width <= height else (longer, size)
    image = picture(width, height)
    out = preprocess(image, PixelInput(new[1], new[0], (ToRgb(), Resize(size, kind))))  # type: ignore[arg-type]
    expected = Image.fromarray(image).resize(new, getattr(Image.Resampling, kind.upper()))
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_resizing_to_height_and_width() -> None:
    out = preprocess(picture(20, 10), PixelInput(6, 14, (ToRgb(), Resize((6, 14)))))
    assert out.shape == (6, 14, 3)


@few
@given(width=sides, height=sides, size=st.integers(1, 60))
def test_cropping_as_torchvision_crops(width: int, height: int, size: int) -> None:
    image = picture(width, height)
    # torchvision's center_crop: zeros around images that are too small, then round half to even.
    left, top = max(size - width, 0) // 2, max(size - height, 0) // 2
    padded = np.zeros((max(height, size), max(width, size), 3), np.uint8)
    padded[top : top + height, left : left + width] = image
    y, x = int(round((len(padded) - size) / 2.0)), int(round((padded.shape[1] - size) / 2.0))  # noqa: RUF046
    out = preprocess(image, PixelInput(size, size, (ToRgb(), CenterCrop(size))))
    np.testing.assert_array_equal(out, padded[y : y + size, x : x + size])


@few
@given(width=sides, height=sides, mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]))
def test_every_pipeline_gives_its_size(width: int, height: int, mode: str) -> None:
    image = Image.fromarray(picture(width, height)).convert(mode)
    for size, steps in AUTHORS.values():
        out = preprocess(image, PixelInput(size, size, steps))
        assert out.shape == (size, size, 3)
        assert out.dtype == np.uint8


def test_a_palette_image_is_padded_in_its_palette() -> None:
    image = Image.fromarray(picture(9, 5)).convert("P")
    out = preprocess(image, PixelInput(9, 9, (PadSquare(0), ToRgb())))
    np.testing.assert_array_equal(out[2:7], np.asarray(image.convert("RGB")))
    first_colour = image.getpalette()[:3]  # type: ignore[index]
    np.testing.assert_array_equal(out[0], np.full((9, 3), first_colour))


def test_extreme_shapes_are_refused_before_memory_is_taken() -> None:
    line = np.zeros((1, 40_000, 3), np.uint8)
    with pytest.raises(ImageError, match=r"padded.*too large"):
        preprocess(line, PixelInput(8, 8, (ToRgb(), PadSquare())))
    with pytest.raises(ImageError, match=r"resized.*too large"):
        preprocess(line, PixelInput(8, 8, (ToRgb(), Resize(256), CenterCrop(8))))


def test_a_bundle_that_does_not_resize_takes_its_size_only() -> None:
    spec = PixelInput(8, 8, (ToRgb(),))
    image = picture(8, 8)
    np.testing.assert_array_equal(preprocess(image, spec), image)
    with pytest.raises(ImageError, match="exactly 8 x 8"):
        preprocess(picture(9, 8), spec)


def jpeg(width: int, height: int, seed: int = 0, **options: object) -> bytes:
    """A smooth picture as a JPEG."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + seed + c)) * np.cos(y / (7 + 2 * c)) for c in range(3)]
    buffer = io.BytesIO()
    Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


PIPELINES: dict[str, tuple[Step, ...]] = {
    "artemis": (ToRgb(), PadSquare(255), Resize(64), CenterCrop(56)),
    "square pad of clip4cir": (PadSquare(0, "clip4cir"), Resize(56, "bicubic"), CenterCrop(56), ToRgb()),
    "target pad": (TargetPad(1.25), Resize(56, "bicubic"), CenterCrop(56), ToRgb()),
    "no pad": (ToRgb(), Resize(56), CenterCrop(56)),
    "stretched": (ToRgb(), Resize((56, 56))),
}


@pytest.mark.parametrize("name", PIPELINES)
@settings(max_examples=25)
@given(width=st.integers(20, 700), height=st.integers(20, 700))
def test_scaled_jpegs_are_close_to_whole_ones_at_every_size(name: str, width: int, height: int) -> None:
    steps = PIPELINES[name]
    encoded = jpeg(width, height)
    whole = preprocess(encoded, PixelInput(56, 56, steps)).astype(int)
    scaled = preprocess(encoded, PixelInput(56, 56, (ScaledJpeg(), *steps))).astype(int)
    # Filtered twice instead of once; with edges a pixel off, it would be 7 and more.
    assert np.abs(whole - scaled).mean() < 4


@pytest.mark.parametrize(("width", "height", "part"), [(1000, 750, 2), (2048, 2048, 8), (2047, 9, 4)])
def test_a_jpeg_is_decoded_at_the_smallest_size_that_the_resize_still_shrinks(
    width: int, height: int, part: int
) -> None:
    spec = PixelInput(224, 224, (ScaledJpeg(), ToRgb(), PadSquare(255), Resize(256), CenterCrop(224)))
    decoded = decode(jpeg(width, height), spec)
    assert decoded.size == (width, height)
    assert decoded.image.size == (-(-width // part), -(-height // part))


def test_the_size_to_resize_to_is_that_of_the_whole_picture() -> None:
    # At 3/8 of 752 the shorter side would be rounded up, and the longer one come out a pixel off.
    steps: tuple[Step, ...] = (ToRgb(), Resize(90))
    for width, height in ((1001, 751), (999, 733), (751, 1003)):
        encoded = jpeg(width, height)
        shape = (90, int(90 * width / height)) if width > height else (int(90 * height / width), 90)
        spec = PixelInput(shape[0], shape[1], (ScaledJpeg(), *steps))
        assert decode(encoded, spec).image.size != (width, height)
        assert preprocess(encoded, spec).shape == (*shape, 3)


def test_a_turned_jpeg_is_scaled_by_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = jpeg(1024, 256, exif=exif.tobytes())
    steps = (ScaledJpeg(), ToRgb(), Resize((256, 64)))  # upright it is 1024 high, 256 wide
    decoded = decode(encoded, PixelInput(256, 64, steps, exif_orientation=True))
    assert decoded.size == (256, 1024)
    assert decoded.image.size == (64, 256)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("value", range(1, 9))
def test_a_turned_jpeg_has_the_edges_of_the_whole_picture(name: str, value: int) -> None:
    """What was rounded up to whole blocks comes to the left and above as it is turned."""
    down, across = np.mgrid[0:1001, 0:1001]
    waves = 127 + 120 * np.sin(np.stack([across / 25, down / 25, (across + down) / 30], 2))
    exif = Image.Exif()
    exif[0x0112] = value
    stream = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(stream, "JPEG", quality=95, subsampling=0, exif=exif)
    steps = PIPELINES[name]
    whole = preprocess(stream.getvalue(), PixelInput(56, 56, steps, exif_orientation=True)).astype(int)
    fast = PixelInput(56, 56, (ScaledJpeg(), *steps), exif_orientation=True)
    assert decode(stream.getvalue(), fast).part == 8
    assert np.abs(whole - preprocess(stream.getvalue(), fast)).mean() < 3  # 10 to 25 pixels aside


def test_what_is_no_jpeg_or_was_decoded_before_is_taken_whole() -> None:
    spec = PixelInput(56, 56, (ScaledJpeg(), *PIPELINES["artemis"]))
    whole = PixelInput(56, 56, PIPELINES["artemis"])
    pixels = picture(400, 300)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    opened = Image.open(io.BytesIO(jpeg(400, 300)))
    for image in (pixels, buffer.getvalue(), opened):
        np.testing.assert_array_equal(preprocess(image, spec), preprocess(image, whole))
