"""An image as the image graph takes it: the manifest's steps, exactly as training did them.

Geometry and filters follow torchvision's transforms on Pillow images (Resize, CenterCrop, Pad), so
that a model sees the same bytes here as there. Dividing by 255 and normalising are in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import (
    CenterCrop,
    DivideByMaximum,
    FeatureInput,
    PadSquare,
    PixelInput,
    Resize,
    ScaledJpeg,
    Step,
    TargetPad,
    ToRgb,
)
from cir_infer.errors import ImageError, lack, shown
from cir_infer.inputs.images import (
    MAX_PIXELS,
    Decoded,
    ImageLike,
    as_encoded,
    check_pixels,
    decode_image,
    describe_image,
    load_features,
)
from cir_infer.inputs.padding import resize_padded
from cir_infer.inputs.resampling import Border, is_rows_first, resize_part

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode", "placement", "prepare", "preprocess"]


class _Picture(NamedTuple):
    """A picture between two steps.

    Attributes:
        image: the pixels.
        size: what it would measure, decoded whole.
        part: how much smaller it was decoded, see `Decoded`; 1 from the first resize on.
        at: where its left and top edge lie in `image`, whose borders are rounded up to whole pixels.
    """

    image: Image.Image
    size: tuple[int, int]
    part: int = 1
    at: tuple[float, float] = (0.0, 0.0)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Its edges in `image`."""
        (left, top), (width, height) = self.at, self.size
        return (left, top, left + width / self.part, top + height / self.part)


def preprocess(
    image: ImageLike, spec: PixelInput | FeatureInput, opened: Callable[[], object] | None = None
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """One image as the graph's input.

    Args:
        image: see `cir_infer.inputs.images.ImageLike`.
        spec: the manifest's `image`.
        opened: called, once or more, when the image is open and before its pixels are decoded or resized.

    Returns:
        uint8 (height, width, 3) RGB, or float32 (size,) for pre-extracted features.

    Raises:
        ImageError: the image cannot be read, or the steps do not bring it to the bundle's size.
    """
    if isinstance(spec, FeatureInput):
        features = load_features(image, spec.size)
        if opened is not None:
            opened()
        return features
    return prepare(decode(image, spec, opened), spec, describe_image(image))


def decode(image: ImageLike, spec: PixelInput, opened: Callable[[], object] | None = None) -> Decoded:
    """The first half of `preprocess`: the decoded image, at a part of its size where the bundle says so.

    Raises:
        ImageError: the image cannot be read.
    """

    def plan(size: tuple[int, int]) -> int:
        part = _plan(spec.steps, describe_image(image), size)
        if opened is not None:
            opened()
        return part

    decoded = decode_image(image, spec.exif_orientation, plan)
    if opened is not None and isinstance(image, np.ndarray):  # of which there was nothing to decode
        opened()
    return decoded


def prepare(decoded: Decoded, spec: PixelInput, name: str = "the image") -> npt.NDArray[np.uint8]:
    """The second half of `preprocess`: the steps on a decoded image, uint8 (height, width, 3).

    Raises:
        ImageError: the steps do not bring it to the bundle's size.
    """
    try:
        picture = _run(spec.steps, decoded, name)
    except (ValueError, OSError, MemoryError) as error:  # Pillow cannot resample or convert this mode
        if lacking := lack(error):
            raise ImageError(f"{name} cannot be prepared now: {lacking}") from error
        raise ImageError(f"{name} cannot be prepared ({shown(error)}); save it as 8-bit RGB") from error
    height, width = picture.shape[:2]
    if (width, height) != (spec.width, spec.height):
        raise ImageError(
            f"{name} is {width} x {height} pixels; this bundle does not "
            f"resize and takes exactly {spec.width} x {spec.height}"
        )
    return picture


def placement(steps: Sequence[Step], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the prepared image lies on the original one.

    Args:
        steps: of the bundle.
        size: width and height of the original.

    Returns:
        Left, top, right and bottom edge in pixels of the original; beyond it where it was padded.
    """
    left, top, across, down = 0.0, 0.0, 1.0, 1.0  # an edge, and pixels of the original to one of the picture
    for step in steps:
        if isinstance(step, (PadSquare, TargetPad)):
            border = _border(step, size)
            left, top, size = left - border[0] * across, top - border[1] * down, _grown(size, border)
        elif isinstance(step, Resize):
            target = _resized(step, size)
            across, down = across * size[0] / target[0], down * size[1] / target[1]
            size = target
        elif isinstance(step, CenterCrop):
            border = _crop_border(step.size, size)
            left, top, size = left - border[0] * across, top - border[1] * down, _grown(size, border)
            box = _crop_box(step, size)
            left, top, size = left + box[0] * across, top + box[1] * down, (step.size, step.size)
    return (left, top, left + size[0] * across, top + size[1] * down)


def _plan(steps: Sequence[Step], name: str, size: tuple[int, int]) -> int:
    """Refuse by its size what a step would make too large; the part of it at which a JPEG may be decoded."""
    whole = size
    for place, step in enumerate(steps):
        if isinstance(step, (PadSquare, TargetPad)):
            size = _grown(size, _border(step, size))
            if not isinstance(next(iter(steps[place + 1 :]), None), Resize):
                check_pixels(*size, f"{name}, padded,")
        elif isinstance(step, Resize):
            target = _resized(step, size)
            _check_resizing(size, target, name)
            size = target
        elif isinstance(step, CenterCrop):
            check_pixels(max(size[0], step.size), max(size[1], step.size), f"{name}, padded,")
            size = (step.size, step.size)
    return _reduction(steps, whole) if steps and isinstance(steps[0], ScaledJpeg) else 1


def _check_resizing(size: tuple[int, int], target: tuple[int, int], name: str) -> None:
    """Rows are filtered first: between the two filters a picture has the new width and the old height."""
    check_pixels(*target, f"{name}, resized,")
    check_pixels(target[0], size[1], f"{name}, half resized,")
    check_pixels(size[0], 1, f"{name}, padded,")


def _reduction(steps: Sequence[Step], size: tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 that leaves both sides at least as long as the first resize makes them."""
    for step in steps:
        if isinstance(step, (PadSquare, TargetPad)):
            size = _grown(size, _border(step, size))
        elif isinstance(step, Resize):
            target = _resized(step, size)
            return next(part for part in (8, 4, 2, 1) if _fits(size, target, part) or part == 1)
    return 1


def _fits(size: tuple[int, int], target: tuple[int, int], part: int) -> bool:
    return size[0] >= part * target[0] and size[1] >= part * target[1]


def _run(steps: Sequence[Step], decoded: Decoded, name: str) -> npt.NDArray[np.uint8]:
    """The steps in order; the last ones, where they resize, in one go to the same bytes."""
    picture = _Picture(*decoded)
    while steps:
        fused = _resized_part(steps, picture, name)
        if fused is not None:
            return fused
        resized = _padded_large(steps, picture, name)
        if resized is not None:
            picture, steps = resized, steps[2:]
        else:
            picture, steps = _apply(steps[0], picture, name), steps[1:]
    return np.asarray(picture.image)


def _resized_part(steps: Sequence[Step], picture: _Picture, name: str) -> npt.NDArray[np.uint8] | None:
    """Padding, resizing, cropping, the last of the steps; None where they are others, or it is Pillow's."""
    pad = steps[0] if isinstance(steps[0], (PadSquare, TargetPad)) else None
    resize, *crops = steps[pad is not None :] or (None,)
    crop = crops[0] if crops else None
    if picture.image.mode != "RGB" or not isinstance(resize, Resize) or len(crops) > 1:
        return None
    border, padded = ((0, 0, 0, 0), picture) if pad is None else _padding(pad, picture)
    across, down = _grown(picture.image.size, border)
    if pad is not None and across * down > MAX_PIXELS:
        return None  # it takes its time for each pixel of the border, `_padded_large` does not
    size = _resized(resize, padded.size)
    if not is_rows_first(picture.image.size, border, padded.box, size):
        return None
    part = (0, 0, *size)
    if crop is not None:
        if not isinstance(crop, CenterCrop) or crop.size > min(size):
            return None
        part = (*_crop_box(crop, size)[:2], crop.size, crop.size)
    _check_resizing(padded.size, size, name)
    fill = pad.fill if isinstance(pad, PadSquare) else 0
    return resize_part(picture.image, border, fill, padded.box, size, part, resize.interpolation)


def _padded_large(steps: Sequence[Step], picture: _Picture, name: str) -> _Picture | None:
    """Padding and resizing in one go, where what is padded is large; None where it is not, or no RGB."""
    if len(steps) < 2 or picture.image.mode not in ("RGB", "L"):
        return None
    pad, resize = steps[:2]
    if not isinstance(pad, (PadSquare, TargetPad)) or not isinstance(resize, Resize):
        return None
    border, padded = _padding(pad, picture)
    across, down = _grown(picture.image.size, border)
    if across * down <= MAX_PIXELS:
        return None
    size = _resized(resize, padded.size)
    _check_resizing(padded.size, size, name)
    fill = pad.fill if isinstance(pad, PadSquare) else 0
    return _Picture(resize_padded(picture.image, border, fill, padded.box, size, _filter(resize)), size)


def _apply(step: Step, picture: _Picture, name: str) -> _Picture:
    """One step by itself, on an image of any mode."""
    image = picture.image
    if isinstance(step, (PadSquare, TargetPad)):
        fill = step.fill if isinstance(step, PadSquare) else 0
        border, padded = _padding(step, picture)
        return padded._replace(image=_pad(image, border, fill, name))
    if isinstance(step, Resize):
        size = _resized(step, picture.size)
        _check_resizing(picture.size, size, name)
        return _Picture(image.resize(size, _filter(step), picture.box), size)
    if isinstance(step, CenterCrop):
        image = _center_crop(image, step, name)
        return _Picture(image, image.size)
    if isinstance(step, ToRgb):
        image = as_encoded(image)
    if isinstance(step, DivideByMaximum):
        image = _divided(image)
    return picture._replace(image=image)


def _divided(image: Image.Image) -> Image.Image:
    """An RGB picture whose largest value is 255; see `DivideByMaximum`."""
    extrema: Any = image.getextrema()  # of each channel
    maximum = max(high for _, high in extrema)
    if maximum in (0, 255):
        return image
    table = [min((510 * value + maximum) // (2 * maximum), 255) for value in range(256)]
    return image.point(table * len(extrema))


def _padding(step: PadSquare | TargetPad, picture: _Picture) -> tuple[Border, _Picture]:
    """A step's border in whole pixels of the image, and where the padded picture will lie in it."""
    left, top, right, bottom = _border(step, picture.size)
    part, (x, y) = picture.part, picture.at
    border = (_up(left, part), _up(top, part), _up(right, part), _up(bottom, part))
    size = _grown(picture.size, (left, top, right, bottom))
    return border, picture._replace(size=size, at=(x + border[0] - left / part, y + border[1] - top / part))


def _up(length: int, part: int) -> int:
    return -(-length // part)


def _grown(size: tuple[int, int], border: Border) -> tuple[int, int]:
    return size[0] + border[0] + border[2], size[1] + border[1] + border[3]


def _border(step: PadSquare | TargetPad, size: tuple[int, int]) -> Border:
    width, height = size
    if isinstance(step, TargetPad):
        longer = max(width, height)
        if longer / min(width, height) < step.ratio:
            return (0, 0, 0, 0)
        target = longer / step.ratio
        across, down = max(int((target - width) / 2), 0), max(int((target - height) / 2), 0)
        return (across, down, across, down)
    across, down = max(height - width, 0), max(width - height, 0)
    left, top = across // 2, down // 2
    if step.rounding == "clip4cir":
        return (left, top, left, top)
    return (left, top, across - left, down - top)


def _resized(step: Resize, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height after resizing."""
    if isinstance(step.size, tuple):
        return (step.size[1], step.size[0])
    shorter, longer = sorted(size)
    longer = int(step.size * longer / shorter)
    return (step.size, longer) if size[0] <= size[1] else (longer, step.size)


def _filter(step: Resize) -> Image.Resampling:
    from PIL import Image

    return {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[step.interpolation]


def _center_crop(image: Image.Image, step: CenterCrop, name: str) -> Image.Image:
    image = _pad(image, _crop_border(step.size, image.size), 0, name)
    return image.crop(_crop_box(step, image.size))


def _crop_border(crop: int, size: tuple[int, int]) -> Border:
    """What is missing to the square that is cut out."""
    across, down = max(crop - size[0], 0), max(crop - size[1], 0)
    return (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)


def _crop_box(crop: CenterCrop, size: tuple[int, int]) -> Border:
    left, top = (
        # torchvision rounds half to even, as Python does.
        round((side - crop.size) / 2) if crop.rounding == "even" else (side - crop.size) // 2
        for side in size
    )
    return (left, top, left + crop.size, top + crop.size)


def _pad(image: Image.Image, border: Border, fill: int, name: str) -> Image.Image:
    """Borders (left, top, right, bottom) of one value in every channel, in a palette of one index."""
    from PIL import Image

    if not any(border):
        return image
    left, top, right, bottom = border
    width, height = image.width + left + right, image.height + top + bottom
    check_pixels(width, height, f"{name}, padded,")
    channels = len(image.getbands())
    padded = Image.new(image.mode, (width, height), (fill,) * channels if channels > 1 else fill)
    palette = image.getpalette()
    if palette is not None:
        padded.putpalette(palette)
    padded.paste(image, (left, top))
    return padded
