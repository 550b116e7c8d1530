"""CSS (Vo et al., CVPR 2019), as published.

    css_toy_dataset_novel2_small.dup.npy     {split: {"mods": [{"from", "to", "to_str"}],
                                              "objects_img": [...], "labels": [...]}}
    images/css_{split}_{number:06d}.png

Each object has "pos" (row and column, in 0..1), "shape", "color" and "size", from which `drawings` makes the
flat pictures of the task from 2D to 3D.

The .npy file is a pickle inside; see `plain_pickle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from cir_eval.datasets.files import existing
from cir_eval.datasets.plain_pickle import load_plain
from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import opened_file

__all__ = ["SPLITS", "Drawings", "Modification", "Split", "drawings", "read_split"]

SPLITS = ("test", "train")
_FILE = "css_toy_dataset_novel2_small.dup.npy"
_SIDE = 64
_COLOURS = {
    "gray": (87, 87, 87),
    "red": (244, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 205, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
Pixels = npt.NDArray[np.uint8]


class Modification(NamedTuple):
    """A text and the scenes that it leads from and to, pairwise, by number."""

    text: str
    sources: list[int]
    targets: list[int]


class Split(NamedTuple):
    """A split: images by number, what each shows (equal labels are equal scenes), modifications, objects."""

    images: list[Path]
    labels: list[str]
    modifications: list[Modification]
    objects: list[list[dict[str, Any]]]


def read_split(root: Path, split: str) -> Split:
    """Read a split.

    Raises:
        DatasetError: the file is missing, damaged, or holds more than plain values and arrays.
    """
    path = existing(root / _FILE, "the scenes and modifications")
    content = _read_object(path)
    try:
        part = content[split]
        objects = [[dict(one) for one in scene] for scene in part["objects_img"]]
        count = len(objects)
        labels = [str(label) for label in part.get("labels", range(count))]
        modifications = [
            Modification(str(mod["to_str"]), [int(n) for n in mod["from"]], [int(n) for n in mod["to"]])
            for mod in part["mods"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path} does not hold CSS's split {shown(split)} ({type(error).__name__}: {error}); "
            "download it again"
        ) from error
    images = [root / "images" / f"css_{split}_{number:06d}.png" for number in range(count)]
    if len(labels) != count:
        raise DatasetError(f"{path} has {len(labels)} labels for {count} scenes; download it again")
    return Split(images, labels, modifications, objects)


class Drawings(Sequence[Pixels]):
    """The scenes from above, one a row, drawn when asked for: uint8 (64, 64, 3)."""

    def __init__(self, objects: Sequence[Sequence[dict[str, Any]]]) -> None:
        self._objects = objects

    def __len__(self) -> int:
        return len(self._objects)

    @overload
    def __getitem__(self, row: int) -> Pixels: ...
    @overload
    def __getitem__(self, row: slice) -> Drawings: ...
    def __getitem__(self, row: int | slice) -> Pixels | Drawings:
        if isinstance(row, slice):
            return Drawings(self._objects[row])
        try:
            return _draw(self._objects[row])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"CSS's scene {row} cannot be drawn ({type(error).__name__}: {error}); expected objects with "
                "pos, shape, color and size"
            ) from error


def drawings(split: Split) -> Drawings:
    """The flat pictures of a split, by number (CSS from 2D to 3D)."""
    return Drawings(split.objects)


def _draw(objects: Sequence[dict[str, Any]]) -> Pixels:
    """White paper; a large object reaches 8 pixels from its middle, a small one 4."""
    canvas = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    for one in objects:
        reach = 8 if one["size"] == "large" else 4
        middle_row, middle_column = (float(value) * _SIDE for value in one["pos"])
        up, aside = rows - middle_row, np.abs(columns + 0.5 - middle_column)
        inside = np.abs(up) <= reach
        if one["shape"] == "circle":  # a square on its tip, as google/tirg has it
            inside &= aside <= reach - np.abs(up)
        elif one["shape"] == "triangle":
            inside &= aside <= (reach + up) / 2
        else:
            inside &= aside <= reach
        canvas[inside] = _COLOURS[one["color"]]
    return canvas


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with opened_file(path) as file:
            _skip_npy_header(file)
            content = load_plain(file)
    except Exception as error:  # a damaged pickle answers with anything
        raise DatasetError(f"{path} cannot be read ({error}); download it again") from error
    if isinstance(content, np.ndarray) and content.shape in ((), (1,)):
        content = content.reshape(-1)[0]
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds a {type(content).__name__}; expected a dictionary of splits")
    return content


def _skip_npy_header(file: IO[bytes]) -> None:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        np.lib.format.read_array_header_1_0(file)
    else:
        np.lib.format.read_array_header_2_0(file)
