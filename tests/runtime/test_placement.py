"""Where a prepared image lies on the original, found in the pixels themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer.bundle.manifest import (
    CenterCrop,
    PadSquare,
    PixelInput,
    Resize,
    ScaledJpeg,
    Step,
    TargetPad,
    ToRgb,
)
from cir_infer.inputs.preprocess import placement, preprocess

sides = st.integers(60, 400)
recipes: st.SearchStrategy[list[Step]] = st.sampled_from(
    [
        [Resize(64), CenterCrop(56)],
        [Resize((64, 64))],
        [PadSquare(255), Resize(70), CenterCrop(64)],
        [PadSquare(0, "clip4cir"), Resize((64, 48))],
        [TargetPad(1.25), Resize(64), CenterCrop(64)],
        [CenterCrop(120), Resize(60)],
        [Resize(64), CenterCrop(56), PadSquare(), Resize(40)],
        [CenterCrop(57, "down")],
    ]
)


@settings(max_examples=80)
@given(width=sides, height=sides, steps=recipes)
def test_a_ramp_of_colour_tells_where_each_pixel_came_from(
    width: int, height: int, steps: list[Step]
) -> None:
    """Red grows to the right and green downwards, so a pixel's colour is its place on the original."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    ramp = np.zeros((height, width, 3))
    ramp[..., 0], ramp[..., 1], ramp[..., 2] = 200 * x + 20, 200 * y[:, None] + 20, 128
    image = Image.fromarray(ramp.round().astype(np.uint8))
    left, top, right, bottom = placement([ToRgb(), *steps], (width, height))
    last = steps[-1]
    assert isinstance(last, (Resize, CenterCrop))
    size = last.size if isinstance(last.size, tuple) else (last.size, last.size)
    spec = PixelInput(*size, (ToRgb(), *steps))
    prepared = preprocess(image, spec).astype(float)
    for row, column in ((0.25, 0.25), (0.5, 0.5), (0.75, 0.25), (0.4, 0.8)):
        at_x = left + (right - left) * (int(column * size[1]) + 0.5) / size[1]
        at_y = top + (bottom - top) * (int(row * size[0]) + 0.5) / size[0]
        colour = prepared[int(row * size[0]), int(column * size[1])]
        margin = 2 * max(right - left, bottom - top) / min(size)
        if not (margin < at_x < width - margin and margin < at_y < height - margin):
            continue  # border, or mixed with it
        assert colour[0] == pytest.approx(200 * at_x / width + 20, abs=2.5)
        assert colour[1] == pytest.approx(200 * at_y / height + 20, abs=2.5)


def test_padding_lies_beyond_the_image_and_a_crop_leaves_some_of_it_out() -> None:
    assert placement([ToRgb(), PadSquare(), Resize((10, 10))], (100, 60)) == (0, -20, 100, 80)
    assert placement([ToRgb(), Resize(60), CenterCrop(60)], (100, 60)) == (20, 0, 80, 60)
    assert placement([ToRgb(), CenterCrop(80)], (40, 60)) == (-20, -10, 60, 70)
    assert placement([ScaledJpeg(), ToRgb(), Resize((8, 8))], (64, 32)) == (0, 0, 64, 32)
