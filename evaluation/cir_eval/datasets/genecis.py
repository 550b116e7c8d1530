"""GeneCIS (Vaze et al., CVPR 2023), as published.

    genecis/{focus,change}_{object,attribute}.json       templates: reference, target, condition, gallery
    val2017/000000000001.jpg                             COCO's images, of the tasks on objects
    VG_100K_all/1.jpg                                    Visual Genome's, of the tasks on attributes

An image on objects is `{"val_image_id": 1}`; one on attributes is `{"image_id": 1, "instance_bbox": [x, y,
w, h]}`, a part of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, overload

import numpy as np
import numpy.typing as npt

from cir_eval.datasets.files import existing, json_list, text_field
from cir_eval.pictures import file_said
from cir_infer.errors import DatasetError, shown
from cir_infer.inputs.images import load_image

__all__ = ["TASKS", "Crops", "Shown", "Template", "read_templates"]

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
_MARGIN = 0.7
_FAR = 1e6
"""Pixels; no picture is as wide."""


class Shown(NamedTuple):
    """An image of a template: a file below the root, and the part of it (x, y, width, height) or None."""

    place: str
    box: tuple[float, ...] | None


class Template(NamedTuple):
    """One query with its own small gallery, without the target in it."""

    condition: str
    reference: Shown
    target: Shown
    gallery: tuple[Shown, ...]


def read_templates(root: Path, task: str) -> list[Template]:
    """The templates of a task.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    folder = root / "genecis" if (root / "genecis").is_dir() else root
    path = folder / f"{task}.json"
    found = []
    for entry in json_list(path, "a list of templates"):
        condition = text_field(entry, "condition", path)
        gallery = entry.get("gallery")
        if not isinstance(gallery, list) or not gallery:
            raise DatasetError(f"{path}: a gallery is {shown(gallery)}; download the file again")
        reference, target, *rest = (
            _shown(one, path) for one in (entry.get("reference"), entry.get("target"), *gallery)
        )
        found.append(Template(condition, reference, target, tuple(rest)))
    return found


def _shown(value: Any, path: Path) -> Shown:
    table = value if isinstance(value, dict) else {}
    number, picture, box = table.get("val_image_id"), table.get("image_id"), table.get("instance_bbox")
    if type(number) is int:
        return Shown(f"val2017/{number:012d}.jpg", None)
    if type(picture) is int and _is_box(box):
        return Shown(f"VG_100K_all/{picture}.jpg", tuple(float(x) for x in box))
    raise DatasetError(
        f"{path}: an image is {shown(value)}; expected val_image_id, or image_id and instance_bbox"
    )


def _is_box(box: Any) -> TypeGuard[list[float]]:
    """Whether it is x, y, width and height of pixels; JSON as Python reads it has NaN and infinities."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(value) in (int, float) and abs(value) <= _FAR for value in box)
        and min(box[2:]) > 0
    )


class Crops(Sequence[Any]):
    """Images of templates, cut out when they are asked for: paths, or uint8 (side, side, 3) arrays."""

    def __init__(self, root: Path, images: Sequence[Shown]) -> None:
        self._root, self._images = root, list(images)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, at: int) -> Any: ...

    @overload
    def __getitem__(self, at: slice) -> Crops: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return Crops(self._root, self._images[at])
        place, box = self._images[at]
        path = existing(self._root / place, "an image")
        return path if box is None else _cut(np.asarray(load_image(path).convert("RGB")), box)

    def told(self, row: int) -> str:
        """See `digest_of_pictures`."""
        place, box = self._images[row]
        return f"{box} {file_said(self._root / place)}"


def _cut(picture: npt.NDArray[np.uint8], box: Sequence[float]) -> npt.NDArray[np.uint8]:
    """The box with a margin of 0.7 of it on every side, as far as the picture goes, on a black square."""
    height, width = picture.shape[:2]
    x, y, w, h = box
    left, top = (max(0, int(start - _MARGIN * side)) for start, side in ((x, w), (y, h)))
    right = min(width, int(x + (1 + _MARGIN) * w))
    bottom = min(height, int(y + (1 + _MARGIN) * h))
    if right <= left or bottom <= top:
        raise DatasetError(f"a box {shown(list(box))} lies outside its picture of {width} x {height}")
    part = picture[top:bottom, left:right]
    side = max(part.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    down, across = ((side - length) // 2 for length in part.shape[:2])
    square[down : down + part.shape[0], across : across + part.shape[1]] = part
    return square
