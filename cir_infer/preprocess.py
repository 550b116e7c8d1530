"""An image as the image graph takes it: the manifest's steps, exactly as training did them.

Geometry and filters follow torchvision's transforms on Pillow images (Resize, CenterCrop, Pad), so
that a model sees the same bytes here as there. Dividing by 255 and normalising are in the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ImageError
from cir_infer.images import ImageLike, check_pixels, describe_image, load_features, load_image
from cir_infer.manifest import CenterCrop, FeatureInput, PadSquare, PixelInput, Resize, Step, TargetPad

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
        for step in spec.steps:
            picture = _apply(step, picture, describe_image(image))
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


def _apply(step: Step, image: Image.Image, name: str) -> Image.Image:
    if isinstance(step, PadSquare):
        return _pad_square(image, step, name)
    if isinstance(step, TargetPad):
        return _target_pad(image, step.ratio, name)
    if isinstance(step, Resize):
        return _resize(image, step, name)
    if isinstance(step, CenterCrop):
        return _center_crop(image, step.size, name)
    return image.convert("RGB")


def _pad_square(image: Image.Image, step: PadSquare, name: str) -> Image.Image:
    width, height = image.size
    across, down = max(height - width, 0), max(width - height, 0)
    left, top = across // 2, down // 2
    if step.rounding == "clip4cir":
        return _pad(image, (left, top, left, top), step.fill, name)
    return _pad(image, (left, top, across - left, down - top), step.fill, name)


def _target_pad(image: Image.Image, ratio: float, name: str) -> Image.Image:
    width, height = image.size
    longer = max(width, height)
    if longer / min(width, height) < ratio:
        return image
    target = longer / ratio
    across, down = max(int((target - width) / 2), 0), max(int((target - height) / 2), 0)
    return _pad(image, (across, down, across, down), 0, name)


def _resize(image: Image.Image, step: Resize, name: str) -> Image.Image:
    from PIL import Image

    if isinstance(step.size, tuple):
        height, width = step.size
    else:
        shorter, longer = sorted(image.size)
        longer = int(step.size * longer / shorter)
        width, height = (step.size, longer) if image.width <= image.height else (longer, step.size)
    check_pixels(width, height, f"{name}, resized,")
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return image.resize((width, height), filters[step.interpolation])


def _center_crop(image: Image.Image, size: int, name: str) -> Image.Image:
    across, down = max(size - image.width, 0), max(size - image.height, 0)
    image = _pad(image, (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2), 0, name)
    # torchvision rounds half to even, as Python does.
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _pad(image: Image.Image, border: tuple[int, int, int, int], fill: int, name: str) -> Image.Image:
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
