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
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.resampling import resize_padded_square
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


@pytest.mark.parametrize(
    ("width", "height"), [(1000, 750), (750, 1000), (1001, 667), (255, 256), (3000, 401)]
)
def test_the_usual_steps_at_the_usual_sizes(width, height):
    steps = (ToRgb(), PadSquare(255), Resize(256), CenterCrop(224))
    pixels = picture(width, height, 0)
    found = preprocess(pixels, PixelInput(224, 224, steps))
    np.testing.assert_array_equal(found, one_by_one(pixels, steps))


def instruction_sets() -> list[str]:
    """Those that this machine can run."""
    names = []
    for name in ("avx2", "baseline"):
        try:
            resize_padded_square(
                Image.new("RGB", (2, 2)), (0, 0, 0, 0), 0, (0, 0, 2, 2), 2, 0, "bilinear", name
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
    part=st.tuples(*[st.floats(0, 0.4)] * 2),
    size=st.integers(1, 90),
    crop=st.floats(0, 0.9),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    values=st.sampled_from(["any", "extreme"]),
)
def test_every_instruction_set_gives_the_bytes_of_pillow(
    width, height, border, part, size, crop, interpolation, values
):
    pixels = picture(width, height, width * 1000 + height)
    if values == "extreme":  # bicubic sums leave 0 to 255 and must be clipped
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    left, top, right, bottom = border
    whole = (width + left + right, height + top + bottom)
    side = min(whole)
    # An edge between pixels, as of a JPEG that was decoded at a part of its size.
    box = (part[0] * side / 2, part[1] * side / 2, side - part[0], side - part[1])
    margin = int(crop * size / 2)
    padded = Image.new("RGB", whole, (9, 9, 9))
    padded.paste(Image.fromarray(pixels), (left, top))
    # In two steps, as Pillow chooses their order by the shape, and ours is rows first.
    rows_first = padded.resize(
        (size, whole[1]), Image.Resampling[interpolation.upper()], (box[0], 0, box[2], whole[1])
    )
    wanted = rows_first.resize(
        (size, size), Image.Resampling[interpolation.upper()], (0, box[1], size, box[3])
    )
    wanted = wanted.crop((margin, margin, size - margin, size - margin))
    for name in instruction_sets():
        found = resize_padded_square(
            Image.fromarray(pixels), border, 9, box, size, margin, interpolation, name
        )
        np.testing.assert_array_equal(found, np.asarray(wanted))
    if RUNNER:
        found = on_other_machine(pixels, border, box, size, margin, interpolation == "bicubic")
        np.testing.assert_array_equal(found, np.asarray(wanted))


@functools.cache
def runner() -> CaseRunner:
    return CaseRunner(RUNNER)


def on_other_machine(pixels, border, box, size, margin, cubic):
    """The answer of kernels/resample/case_runner.cpp."""
    height, width, channels = pixels.shape
    head = np.array([width, height, channels, *border, 9, size, margin, cubic], "<i4")
    case = head.tobytes() + np.array(box, "<f4").tobytes() + pixels.tobytes()
    side = size - 2 * margin
    return np.frombuffer(runner().ask(case, 3 * side * side), np.uint8).reshape(side, side, 3)


def test_an_instruction_set_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match="cannot run sse17"):
        resize_padded_square(
            Image.new("RGB", (2, 2)), (0, 0, 0, 0), 0, (0, 0, 2, 2), 2, 0, "bilinear", "sse17"
        )


def test_a_large_picture_in_pieces_is_read_all_the_same():
    pixels = picture(2600, 2100, 3)
    steps = (ToRgb(), PadSquare(255), Resize(64), CenterCrop(56))
    if hasattr(Image.Image, "__arrow_c_array__"):  # from Pillow 11.3 on
        with pytest.raises(ValueError, match=r"contiguous|multiple"):
            Image.fromarray(pixels).__arrow_c_array__()
    found = preprocess(pixels, PixelInput(56, 56, steps))
    np.testing.assert_array_equal(found, one_by_one(pixels, steps))


@pytest.mark.parametrize(
    ("border", "box", "size", "margin"),
    [
        ((0, 0, 0, 0), (0, 0, 8, 8), 0, 0),
        ((0, 0, 0, 0), (0, 0, 8, 8), -4, 0),
        ((0, 0, 0, 0), (0, 0, 8, 8), 4, 2),
        ((0, 0, 0, 0), (0, 0, 8, 8), 4, 2**31 - 1),
        ((0, 0, 0, 0), (0, 0, 8, 8), 2**31 - 1, 0),
        ((-1, 0, 0, 0), (0, 0, 8, 8), 4, 0),
        ((2**31 - 1, 0, 2**31 - 1, 0), (0, 0, 8, 8), 4, 0),
        ((0, 0, 0, 0), (0, 0, 1e30, 8), 4, 0),
        ((0, 0, 0, 0), (-5, 0, 8, 8), 4, 0),
        ((0, 0, 0, 0), (8, 0, 0, 8), 4, 0),
        ((0, 0, 0, 0), (0, 0, float("nan"), 8), 4, 0),
        ((0, 0, 0, 0), (0, 0, 8, float("inf")), 4, 0),
    ],
)
def test_squares_that_cannot_be_are_refused(
    border: tuple[int, int, int, int], box: tuple[float, float, float, float], size: int, margin: int
) -> None:
    """The native code reads and writes no memory outside of the pictures, whoever asks."""
    with pytest.raises(DeviceError):
        resize_padded_square(Image.fromarray(picture(8, 8, 0)), border, 0, box, size, margin, "bilinear")
