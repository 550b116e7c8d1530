"""Padding, resizing and cropping in one go gives the bytes of one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer.manifest import CenterCrop, PadSquare, PixelInput, Resize, Step, TargetPad, ToRgb
from cir_infer.preprocess import preprocess


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


@settings(derandomize=True, deadline=None, max_examples=250)
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
