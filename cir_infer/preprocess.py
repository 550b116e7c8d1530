"""An image as the image graph takes it: the manifest's steps, exactly as training did them.

Geometry and filters follow torchvision's transforms on Pillow images (Resize, CenterCrop, Pad), so
that a model sees the same bytes here as there. Dividing by 255 and normalising are in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ImageError
from cir_infer.images import ImageLike, check_pixels, describe_image, load_features, load_image
from cir_infer.manifest import CenterCrop, FeatureInput, PadSquare, PixelInput, Resize, Step, TargetPad
from cir_infer.resampling import Border, resize_padded_square

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["preprocess"]


def preprocess(
    image: ImageLike, spec: PixelInput | FeatureInput
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """One image as the graph's input.

    Args:
        image: see `cir_infer.images.ImageLike`.
        spec: the manifest's `image`.

    Returns:
        uint8 (height, width, 3) RGB, or float32 (size,) for pre-extracted features.

    Raises:
        ImageError: the image cannot be read, or the steps do not bring it to the bundle's size.
    """
    if isinstance(spec, FeatureInput):
        return load_features(image, spec.size)
    picture = load_image(image, spec.exif_orientation)
    try:
        picture = _run(spec.steps, picture, describe_image(image))
    except (ValueError, OSError, MemoryError) as error:  # Pillow cannot resample or convert this mode
        raise ImageError(
            f"{describe_image(image)} cannot be prepared ({error}); save it as 8-bit RGB"
        ) from error
    if picture.size != (spec.width, spec.height):
        raise ImageError(
            f"{describe_image(image)} is {picture.width} x {picture.height} pixels; this bundle does not "
            f"resize and takes exactly {spec.width} x {spec.height}"
        )
    return np.asarray(picture)


def _run(steps: Sequence[Step], image: Image.Image, name: str) -> Image.Image:
    """The steps in order; padding to a square, resizing and cropping it are one step, to the same bytes."""
    while steps:
        fused = _padded_square(steps, image, name)
        if fused is None:
            image, steps = _apply(steps[0], image, name), steps[1:]
        else:
            image, steps = fused, steps[3:]
    return image


def _padded_square(steps: Sequence[Step], image: Image.Image, name: str) -> Image.Image | None:
    """The first three steps in one go; None where they are others, or their order of rounding is open."""
    if len(steps) < 3 or image.mode not in ("L", "RGB"):
        return None
    pad, resize, crop = steps[:3]
    if not (isinstance(pad, PadSquare) and isinstance(resize, Resize) and isinstance(crop, CenterCrop)):
        return None
    border = _border(pad, image.size)
    padded = (image.width + border[0] + border[2], image.height + border[1] + border[3])
    size = _resized(resize, padded)
    if padded[0] != padded[1] or size[0] != size[1] or crop.size > size[0] or (size[0] - crop.size) % 2:
        return None
    check_pixels(*padded, f"{name}, padded,")
    check_pixels(*size, f"{name}, resized,")
    margin = (size[0] - crop.size) // 2
    return resize_padded_square(image, border, pad.fill, size[0], margin, _filter(resize))


def _apply(step: Step, image: Image.Image, name: str) -> Image.Image:
    """One step by itself, on an image of any mode."""
    if isinstance(step, (PadSquare, TargetPad)):
        return _pad(image, _border(step, image.size), step.fill if isinstance(step, PadSquare) else 0, name)
    if isinstance(step, Resize):
        size = _resized(step, image.size)
        check_pixels(*size, f"{name}, resized,")
        return image.resize(size, _filter(step))
    if isinstance(step, CenterCrop):
        return _center_crop(image, step.size, name)
    return image if image.mode == "RGB" else image.convert("RGB")


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


def _center_crop(image: Image.Image, size: int, name: str) -> Image.Image:
    across, down = max(size - image.width, 0), max(size - image.height, 0)
    image = _pad(image, (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2), 0, name)
    return image.crop(_crop_box(size, image.size))


def _crop_box(crop: int, size: tuple[int, int]) -> Border:
    # torchvision rounds half to even, as Python does.
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return (left, top, left + crop, top + crop)


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
