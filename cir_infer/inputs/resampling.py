"""Pad to a square, resize, crop the middle: in one go, to the bytes of Pillow doing one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Border", "resize_padded_square"]

Border = tuple[int, int, int, int]
"""Pixels to add left, top, right, bottom."""


def resize_padded_square(
    image: Image.Image,
    border: Border,
    fill: int,
    box: tuple[float, float, float, float],
    size: int,
    margin: int,
    interpolation: Literal["bilinear", "bicubic"],
    instruction_set: str = "",
) -> npt.NDArray[np.uint8]:
    """The middle of a resized square that a picture and its border make.

    Args:
        image: of mode "RGB".
        border: what is added to it.
        fill: value of the border in every channel.
        box: left, top, right, bottom edge of the square in what that makes. The whole of it, but for a JPEG
            decoded at a part of its size, whose true edges lie between pixels.
        size: side to resize the square to.
        margin: how much is then cut off on every side, less than half of `size`.
        interpolation: Pillow's filter of that name, which widens with the reduction (antialiasing).
        instruction_set: "avx2" or "baseline"; by default the best of this machine.

    Returns:
        uint8 (size - 2 margin, size - 2 margin, 3), as Pillow makes it (kernels/resample/README.md).

    Raises:
        DeviceError: the native module is missing, or this machine lacks the instruction set.
    """
    native, cubic = _native(), interpolation == "bicubic"
    how = (border, fill, box, size, margin, cubic, instruction_set)
    array = _shown(image)
    try:
        resized: npt.NDArray[np.uint8] = (
            native.resize_square(np.asarray(image), *how)
            if array is None
            else native.resize_square_of_arrow(array, *image.size, *how)
        )
    except ValueError as error:
        raise DeviceError(str(error)) from error
    return resized


def _shown(image: Image.Image) -> object | None:
    """Pillow's own memory as an Arrow array; None where it is in pieces (from 16 MB on), and before 11.2."""
    try:
        return image.__arrow_c_array__()[1]
    except (AttributeError, ValueError):
        return None


def _native() -> Any:
    try:
        from cir_infer.inputs import _resample
    except ImportError as error:
        raise DeviceError(
            f"the native module of cir-infer cannot be loaded ({error}); install it with pip, which builds it"
        ) from error
    return _resample
