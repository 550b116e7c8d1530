"""Padding, resizing and cropping in one go gives the bytes of one after the other.

`make neon-check` sets CIR_RESAMPLE_RUNNER to the command that runs kernels/resample/case_runner.cpp.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer.bundle.manifest import CenterCrop, PadSquare, PixelInput, Resize, Step, TargetPad, ToRgb
from cir_infer.errors import DeviceError
from cir_infer.inputs import preprocess as preprocessing
from cir_infer.inputs import resampling
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.resampling import is_rows_first, resize_part
from tests.other_machine import CaseRunner, command

RUNNER = command("CIR_RESAMPLE_RUNNER")


def picture(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def one_by_one(pixels: np.ndarray, steps: tuple[Step, ...]) -> np.ndarray:
    """The steps as torchvision does them, written out with Pillow."""
    image = Image.fromarray(pixels)
    for step in steps:
        width, height = image.size
        if isinstance(step, (PadSquare, TargetPad)):
            if isinstance(step, PadSquare):
                across, down = max(height - width, 0), max(width - height, 0)
                left, top = across // 2, down // 2
                right, bottom = across - left, down - top
                if step.rounding == "clip4cir":
                    right, bottom = left, top
                fill = step.fill
            elif max(width, height) / min(width, height) < step.ratio:
                left = top = right = bottom = fill = 0
            else:
                target = max(width, height) / step.ratio
                left = right = max(int((target - width) / 2), 0)
                top = bottom = max(int((target - height) / 2), 0)
                fill = 0
            padded = Image.new("RGB", (width + left + right, height + top + bottom), (fill,) * 3)
            padded.paste(image, (left, top))
            image = padded
        elif isinstance(step, Resize):
            if isinstance(step.size, tuple):
                size = step.size[::-1]
            elif width <= height:
                size = (step.size, int(step.size * height / width))
            else:
                size = (int(step.size * width / height), step.size)
            image = image.resize(size, Image.Resampling[step.interpolation.upper()])
        elif isinstance(step, CenterCrop):
            left, top = round((width - step.size) / 2), round((height - step.size) / 2)
            image = image.crop((left, top, left + step.size, top + step.size))
    return np.asarray(image)


_PADS = st.sampled_from(
    [(), (PadSquare(255),), (PadSquare(7, "clip4cir"),), (TargetPad(1.25),), (TargetPad(1.9),)]
)


@settings(max_examples=250)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    pad=_PADS,
    size=st.sampled_from([64, 60, 61, 128, 32, (64, 64), (64, 48), (50, 64)]),
    crop=st.sampled_from([None, 28, 28, 31, 32]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_in_one_go_is_one_by_one(width, height, pad, size, crop, interpolation):
    if max(width, height) > 60 * min(width, height):
        width = height
    steps = (ToRgb(), *pad, Resize(size, interpolation), *(() if crop is None else (CenterCrop(crop),)))
    pixels = picture(width, height, width * 1000 + height)
    wanted = one_by_one(pixels, steps)
    found = preprocess(pixels, PixelInput(wanted.shape[0], wanted.shape[1], steps))
    np.testing.assert_array_equal(found, wanted)


_USUAL = {
    "artemis": (ToRgb(), PadSquare(255), Resize(256), CenterCrop(224)),
    "clip": (ToRgb(), Resize(224, "bicubic"), CenterCrop(224)),
    "clip4cir": (ToRgb(), TargetPad(1.25), Resize(288, "bicubic"), CenterCrop(288)),
    "siglip": (ToRgb(), Resize((224, 224), "bicubic")),
}


@pytest.mark.parametrize("system", _USUAL)
@pytest.mark.parametrize(
    ("width", "height"),
    [(1000, 750), (750, 1000), (1001, 667), (255, 256), (3000, 401), (401, 3000), (540, 960), (960, 540)],
)
def test_the_usual_steps_at_the_usual_sizes(system, width, height):
    steps = _USUAL[system]
    pixels = picture(width, height, 0)
    side = 288 if system == "clip4cir" else 224
    found = preprocess(pixels, PixelInput(side, side, steps))
    np.testing.assert_array_equal(found, one_by_one(pixels, steps))


@pytest.mark.parametrize("system", _USUAL)
def test_photographs_take_the_way_of_one_go(system, monkeypatch):
    """Upright and wide ones, for each of which Pillow takes several times as long."""
    asked = []
    monkeypatch.setattr(preprocessing, "resize_part", lambda *how: asked.append(how) or resize_part(*how))
    for width, height in ((640, 480), (480, 640), (1920, 1080), (1080, 1920), (300, 300)):
        side = 288 if system == "clip4cir" else 224
        preprocess(picture(width, height, 0), PixelInput(side, side, _USUAL[system]))
    assert len(asked) == 5


@settings(max_examples=150)
@given(
    width=st.integers(1, 120),
    height=st.integers(1, 300),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    box=st.tuples(*[st.floats(0, 0.4)] * 4),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_where_rows_come_first_the_bytes_are_those_of_pillow_at_once(width, height, size, box, interpolation):
    """Pillow chooses its order by the shape, and each of its releases its own way."""
    pixels = picture(width, height, width * 1000 + height)
    edges = (box[0] * width, box[1] * height, width - box[2] * width, height - box[3] * height)
    image = Image.fromarray(pixels)
    for part in ((0.0, 0.0, float(width), float(height)), edges):
        if is_rows_first(image.size, (0, 0, 0, 0), part, size):
            wanted = image.resize(size, Image.Resampling[interpolation.upper()], part)
            found = resize_part(image, (0, 0, 0, 0), 0, part, size, (0, 0, *size), interpolation)
            np.testing.assert_array_equal(found, np.asarray(wanted))


def instruction_sets() -> list[str]:
    """Those that this machine can run."""
    names = []
    for name in ("avx2", "baseline"):
        try:
            resize_part(
                Image.new("RGB", (2, 2)),
                (0, 0, 0, 0),
                0,
                (0, 0, 2, 2),
                (2, 2),
                (0, 0, 2, 2),
                "bilinear",
                name,
            )
        except DeviceError:
            continue
        names.append(name)
    return names


@settings(max_examples=150)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    border=st.tuples(*[st.integers(0, 40)] * 4),
    edges=st.tuples(*[st.floats(0, 0.4)] * 4),
    size=st.tuples(*[st.integers(1, 90)] * 2),
    asked=st.tuples(*[st.floats(0, 0.5)] * 4),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    values=st.sampled_from(["any", "extreme"]),
    band=st.sampled_from([1, 700, 9000]),
)
def test_every_instruction_set_gives_the_bytes_of_pillow(
    width, height, border, edges, size, asked, interpolation, values, band
):
    pixels = picture(width, height, width * 1000 + height)
    if values == "extreme":  # bicubic sums leave 0 to 255 and must be clipped
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    left, top, right, bottom = border
    whole = (width + left + right, height + top + bottom)
    # Edges between pixels, as of a JPEG that was decoded at a part of its size.
    box = (
        *(edge * length for edge, length in zip(edges[:2], whole, strict=True)),
        *(length - edge * length for edge, length in zip(edges[2:], whole, strict=True)),
    )
    x, y = (int(share * side) for share, side in zip(asked[:2], size, strict=True))
    columns, rows = (max(1, int((1 - share) * side)) for share, side in zip(asked[2:], size, strict=True))
    part = (x, y, min(columns, size[0] - x), min(rows, size[1] - y))
    padded = Image.new("RGB", whole, (9, 9, 9))
    padded.paste(Image.fromarray(pixels), (left, top))
    # In two steps, as Pillow chooses their order by the shape, and ours is rows first.
    rows_first = padded.resize(
        (size[0], whole[1]), Image.Resampling[interpolation.upper()], (box[0], 0, box[2], whole[1])
    )
    wanted = rows_first.resize(size, Image.Resampling[interpolation.upper()], (0, box[1], size[0], box[3]))
    wanted = wanted.crop((part[0], part[1], part[0] + part[2], part[1] + part[3]))
    image = Image.fromarray(pixels)
    for name in instruction_sets():
        found = resize_part(image, border, 9, box, size, part, interpolation, name)
        np.testing.assert_array_equal(found, np.asarray(wanted))
        for shows in (resampling._shown, lambda image: None):  # before Pillow 11.2 nothing is shown
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(resampling, "_BAND", band)
                patch.setattr(resampling, "_shown", _of_bands(shows, height))
                found = resize_part(image, border, 9, box, size, part, interpolation, name)
            np.testing.assert_array_equal(found, np.asarray(wanted))
    if RUNNER:
        found = on_other_machine(pixels, border, box, size, part, interpolation == "bicubic")
        np.testing.assert_array_equal(found, np.asarray(wanted))


def _of_bands(shows, height):
    """What shows the memory of bands as `shows` does and, as of large pictures, not that of the whole."""
    return lambda image: None if image.height == height else shows(image)


@functools.cache
def runner() -> CaseRunner:
    return CaseRunner(RUNNER)


def on_other_machine(pixels, border, box, size, part, cubic):
    """The answer of kernels/resample/case_runner.cpp."""
    height, width, channels = pixels.shape
    head = np.array([width, height, channels, *border, 9, *size, *part, cubic], "<i4")
    case = head.tobytes() + np.array(box, "<f4").tobytes() + pixels.tobytes()
    columns, rows = part[2:]
    answer = np.frombuffer(runner().ask(case, 3 * columns * rows), np.uint8)
    return answer.reshape(rows, columns, 3)


def test_an_instruction_set_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match="cannot run sse17"):
        resize_part(
            Image.new("RGB", (2, 2)), (0, 0, 0, 0), 0, (0, 0, 2, 2), (2, 2), (0, 0, 2, 2), "bilinear", "sse17"
        )


def test_a_large_picture_in_pieces_is_read_all_the_same():
    pixels = picture(2600, 2100, 3)
    steps = (ToRgb(), PadSquare(255), Resize(64), CenterCrop(56))
    if hasattr(Image.Image, "__arrow_c_array__"):  # from Pillow 11.3 on
        with pytest.raises(ValueError, match=r"contiguous|multiple"):
            Image.fromarray(pixels).__arrow_c_array__()
    found = preprocess(pixels, PixelInput(56, 56, steps))
    np.testing.assert_array_equal(found, one_by_one(pixels, steps))


_WHOLE = ((0, 0, 0, 0), (0, 0, 8, 8), (8, 8), (0, 0, 8, 8))
_FAR = 2**31 - 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((0, border) for border in ((-1, 0, 0, 0), (_FAR, 0, _FAR, 0), (0, _FAR, 0, _FAR))),
        *((1, box) for box in ((0, 0, 1e30, 8), (-5, 0, 8, 8), (8, 0, 0, 8), (0, 0, float("nan"), 8))),
        *((1, box) for box in ((0, 0, 8, float("inf")), (0, 0, 8, 10))),
        *((2, size) for size in ((0, 8), (8, 0), (-4, 8), (8, _FAR), (_FAR, 8), (7, 8), (8, 7))),
        *((3, part) for part in ((-1, 0, 8, 8), (0, -1, 8, 8), (0, 0, 9, 8), (0, 0, 8, 9), (0, 0, 0, 8))),
        *(
            (3, part)
            for part in ((1, 0, 8, 8), (0, 1, 8, 8), (_FAR, 0, 8, 8), (0, 0, _FAR, 8), (0, 0, 8, -8))
        ),
    ],
)
def test_parts_that_cannot_be_are_refused(place: int, value: tuple[float, ...]) -> None:
    """The native code reads and writes no memory outside of the pictures, whoever asks."""
    image = Image.fromarray(picture(8, 8, 0))

    def resized(how: list) -> np.ndarray:
        border, box, size, part = how
        return resize_part(image, border, 0, box, size, part, "bilinear")

    assert resized([*_WHOLE]).shape == (8, 8, 3)
    with pytest.raises(DeviceError):
        resized([*_WHOLE[:place], value, *_WHOLE[place + 1 :]])
