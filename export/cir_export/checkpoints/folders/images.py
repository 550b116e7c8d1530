"""`preprocessor_config.json` of transformers as `image` of a bundle's manifest.

The steps are those of the image processors of transformers 4, which resize with Pillow, as the runtime does.
Transformers 5 and its "fast" processors resize tensors with torchvision, whose pixels differ by a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_export.checkpoints.folders.files import json_of
from cir_export.checkpoints.numbers import LEAST_STD, channels
from cir_infer.errors import CheckpointError, shown

__all__ = ["ImageProcessor", "image_processor"]

_FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""By Pillow's number."""

_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_CHANGING = ("crop_pct", "offset", "rescale_offset", "keep_aspect_ratio", "size_divisor")


@dataclass(frozen=True)
class ImageProcessor:
    """What becomes of an image before the tower.

    Attributes:
        image: of the manifest.
        mean: of the channels, in 0..1; inside the image graph.
        std: their standard deviation.
    """

    image: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_processor(folder: Path, size: int) -> ImageProcessor:
    """The image processor of a folder.

    Args:
        folder: of the model.
        size: the side that its tower takes, in pixels.

    Raises:
        CheckpointError: there is none, it does something that a bundle cannot say, or its images are not
            of the tower's size.
    """
    said = json_of(folder, "preprocessor_config.json")
    name = "preprocessor_config.json"
    if said is None:
        name = "processor_config.json"  # where transformers 5 keeps it
        said = (json_of(folder, name) or {}).get("image_processor")
    if not isinstance(said, Mapping):
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, which says how images are resized and normalised; "
            "download it from where the model is from"
        )
    where = f"{folder / name}"
    crop = _flag(said, "do_center_crop", "crop_size" in said, where)
    resizes, rescales, normalises = (
        _flag(said, f"do_{step}", True, where) for step in ("resize", "rescale", "normalize")
    )
    _check_further(said, where)
    steps: list[dict[str, Any]] = [{"op": "to_rgb"}]
    reached = None
    if resizes:
        resized, reached = _resized(said, size, where)
        steps.append(resized)
    if crop:
        side = _square(said.get("crop_size", size), "crop_size", where)
        if reached is not None and reached < side:
            raise CheckpointError(f"{where}: it resizes to {reached} pixels and cuts {side} out of them")
        steps.append({"op": "center_crop", "size": side, "rounding": "down"})
        reached = side
    if reached is not None and reached != size:
        raise CheckpointError(
            f"{where} makes images of {reached} x {reached} and the model takes {size} x {size}; the two are "
            "not of one model"
        )
    if not crop and reached is not None and isinstance(steps[1]["size"], int):
        raise CheckpointError(f"{where} resizes the shorter side and cuts nothing off; expected a square")
    factor = said.get("rescale_factor", 1 / 255)
    if not rescales or not isinstance(factor, float) or not abs(factor * 255 - 1) <= 1e-6:
        raise CheckpointError(f"{where}: rescale_factor {shown(factor)}; expected 1 / 255")
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if normalises:
        mean = channels(said.get("image_mean"), "image_mean", where)
        std = channels(said.get("image_std"), "image_std", where, least=LEAST_STD)
    image = {"kind": "pixels", "height": size, "width": size, "exif_orientation": True, "steps": steps}
    return ImageProcessor(image, mean, std)


def _flag(said: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = said.get(name, default)
    if type(value) is not bool:
        raise CheckpointError(f"{where}: {name} is {shown(value)}; expected true or false")
    return value


def _check_further(said: Mapping[str, Any], where: str) -> None:
    """Refuse what would make other pixels, and is no step of CLIP's or SigLIP's processors.

    Each step of a processor of transformers has a flag `do_...`; of the settings beside them some change it.
    """
    asked = [key for key, value in said.items() if value and (key.startswith("do_") or key in _CHANGING)]
    unknown = sorted({*asked} - _STEPS)
    if unknown:
        raise CheckpointError(
            f"{where}: {shown(unknown[0])} is {shown(said[unknown[0]])}; images are resized, cropped, "
            "rescaled and normalised here, and nothing else"
        )
    kind = said.get("image_processor_type", said.get("feature_extractor_type"))
    clip = isinstance(kind, str) and kind.startswith(("CLIPImage", "CLIPFeature"))
    if clip and not {"do_center_crop", "crop_size"} & {*said} and said.get("do_resize", True):
        raise CheckpointError(
            f"{where}: a {kind[:40]} crops where it does not say otherwise; expected do_center_crop "
            "and crop_size in it"
        )


def _resized(said: Mapping[str, Any], tower: int, where: str) -> tuple[dict[str, Any], int]:
    number = said.get("resample", 3)
    if number not in tuple(_FILTERS):  # by equality: what JSON holds need not be hashable
        raise CheckpointError(f"{where}: resample {shown(number)}; expected 2 (bilinear) or 3 (bicubic)")
    size, target = said.get("size", tower), None
    if type(size) is int and size > 0:
        # Of the first releases: the shorter side where a crop follows.
        target = size if said.get("do_center_crop", "crop_size" in said) else [size, size]
    elif isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        target = size["shortest_edge"]
    elif isinstance(size, Mapping) and set(size) == {"height", "width"}:
        target = [size["height"], size["width"]]
    sides = target if isinstance(target, list) else [target]
    if not all(type(side) is int and 1 <= side <= 8192 for side in sides) or len(set(sides)) != 1:
        raise CheckpointError(
            f"{where}: size {shown(size)}; expected a number, shortest_edge, or equal height and width"
        )
    return {"op": "resize", "size": target, "interpolation": _FILTERS[number]}, int(sides[0] or 0)


def _square(size: Any, key: str, where: str) -> int:
    sides: list[Any] = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else [size]
    if not all(type(side) is int and 1 <= side <= 8192 for side in sides) or len(set(sides)) != 1:
        raise CheckpointError(f"{where}: {key} {shown(size)}; expected a number, or equal height and width")
    return int(sides[0])
