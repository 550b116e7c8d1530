"""Pad, resize, crop: in one go, to the bytes of Pillow doing one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Border", "is_rows_first", "resize_part"]

Border = tuple[int, int, int, int]
"""Pixels to add left, top, right, bottom."""


_WIDEST = 1 << 16
"""Pixels of a row, border included, that four rows of are woven together; a wider picture is Pillow's."""

_BAND = 1 << 18
"""Pixels that are copied at a time out of a picture that lies in pieces: an array of all of it would take as
long as decoding it."""

_LARGEST = 1 << 15
"""The native code's limit for a side to resize to."""


def is_rows_first(
    image: tuple[int, int], border: Border, box: tuple[float, float, float, float], size: tuple[int, int]
) -> bool:
    """Whether `resize_part` gives the bytes of every Pillow, which rounds between its two passes.

    Since Pillow 13 columns are filtered first where the height loses more than twice what the width does
    (python-pillow/Pillow#9549); before, and here, rows always are.

    Args:
        image: width and height.
        border: what is added to it.
        box: left, top, right, bottom edge in what that makes.
        size: width and height to resize that to.
    """
    width, height = border[0] + image[0] + border[2], border[1] + image[1] + border[3]
    narrow, low = min(width, box[2] - box[0]), max(height, box[3] - box[1])
    columns_first = low > size[1] and low - size[1] > 2 * (narrow - size[0])
    return width <= _WIDEST and max(size) <= _LARGEST and not columns_first


def resize_part(
    image: Image.Image,
    border: Border,
    fill: int,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    part: tuple[int, int, int, int],
    interpolation: Literal["bilinear", "bicubic"],
    instruction_set: str = "",
) -> npt.NDArray[np.uint8]:
    """A part of what a picture and its border are resized to.

    Args:
        image: of mode "RGB".
        border: what is added to it.
        fill: value of the border in every channel.
        box: left, top, right, bottom edge of what is resized, in what that makes. The whole of it, but for a
            JPEG decoded at a part of its size, whose true edges lie between pixels.
        size: width and height to resize it to.
        part: left and top edge, width and height of what is asked for of that.
        interpolation: Pillow's filter of that name, which widens with the reduction (antialiasing).
        instruction_set: "avx2" or "baseline"; by default the best of this machine.

    Returns:
        uint8 (height, width, 3) of the part, as Pillow makes it where `is_rows_first` says so
        (kernels/resample/README.md).

    Raises:
        DeviceError: the native module is missing, or this machine lacks the instruction set.
    """
    native, (width, height) = _native(), image.size
    cubic = interpolation == "bicubic"
    try:
        resized = native.Resized((width, height), border, fill, box, size, part, cubic, instruction_set)
        array = _shown(image)
        if array is not None:
            resized.feed_arrow(array, height)
        else:
            rows = max(1, _BAND // width // native.WOVEN) * native.WOVEN
            for top in range(0, height, rows):
                band = image.crop((0, top, width, min(top + rows, height)))
                array = _shown(band)
                if array is None:
                    resized.feed_pixels(np.asarray(band))
                else:
                    resized.feed_arrow(array, band.height)
        made: npt.NDArray[np.uint8] = resized.taken()
    except ValueError as error:
        raise DeviceError(str(error)) from error
    return made


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
