"""Arrays of every type and layout: an image, or an error that says how to make one of it."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cir_infer.errors import ImageError
from cir_infer.inputs.arrays import is_masked
from cir_infer.inputs.images import load_features, load_image


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((8, 9, 3), np.float32), r"astype\(numpy.uint8\)"),
        (np.full((8, 9, 3), 0.5), r"from 0.5 to 0.5; .*\(array \* 255\)"),
        (np.full((8, 9, 3), 200.0), r"pass array\.round"),
        (np.full((8, 9, 3), -1.5), "normalisation"),
        (np.full((8, 9, 3), np.nan), "NaN"),
        (np.full((8, 9, 3), 60_000, np.uint16), "scale it"),
        (np.zeros((8, 9, 3), np.int64), r"array\.round"),
        (np.zeros((8, 9, 3), bool), "true and false"),
        (np.zeros((8, 9, 3), object), "does not hold numbers"),
        (np.zeros((8, 9, 3), "U1"), "does not hold numbers"),
        (np.zeros((8, 9, 3), complex), "does not hold numbers"),
        (np.zeros((3, 8, 9), np.uint8), r"channels first; .*: pass array\.transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 9, 3), np.uint8), r"array\[0\]"),
        (np.zeros((5, 8, 9, 3), np.uint8), "batch of 5"),
        (np.zeros((8, 9), np.uint8), r"array\[:, :, None\]"),
        (np.zeros((8, 9, 2), np.uint8), "height, width, 3"),
        (np.zeros((), np.uint8), "height, width, 3"),
        (np.zeros((0, 9, 3), np.uint8), "empty"),
    ],
)
def test_what_is_no_image_says_what_to_do(array: np.ndarray, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        load_image(array)


def test_what_is_masked_is_no_image() -> None:
    """What lies under a mask was never meant to be used: it was read as any pixel."""
    pixels = np.zeros((8, 9, 3), np.uint8)
    assert load_image(np.ma.masked_array(pixels, mask=False)).size == (9, 8)
    with pytest.raises(ImageError, match=r"masked in part; pass array\.filled"):
        load_image(np.ma.masked_array(pixels, mask=pixels == 0))
    with pytest.raises(ImageError, match="masked in part"):
        load_features(np.ma.masked_array(np.ones(4), mask=[False, False, True, False]), 4)


def test_layouts_in_memory_do_not_matter() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (16, 18, 3), np.uint8)
    readonly = whole[::2, ::2].copy()
    readonly.flags.writeable = False
    for view in (whole[::2, ::2], np.asfortranarray(whole[::2, ::2]), readonly):
        np.testing.assert_array_equal(np.asarray(load_image(view)), whole[::2, ::2])
    assert load_image(whole[:, :, :1]).mode == "L"


@settings(max_examples=300)
@given(
    array=hnp.arrays(
        hnp.scalar_dtypes() | st.just(np.dtype(object)), hnp.array_shapes(max_dims=5, max_side=5)
    )
)
def test_any_array_is_an_image_or_a_typed_error(array: np.ndarray) -> None:
    try:
        assert load_image(array).size == (array.shape[1], array.shape[0])
    except ImageError as error:
        assert len(str(error)) < 400


def test_nothing_is_masked_while_another_thread_imports_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module stands among those imported before it holds anything: a thread of a search met it so."""
    masked = np.ma.masked_array(np.ones(3), mask=[0, 1, 0])
    assert is_masked(masked) and not is_masked(np.ones(3))
    monkeypatch.setitem(sys.modules, "numpy.ma", types.ModuleType("numpy.ma"))
    assert not is_masked(np.ones(3))
