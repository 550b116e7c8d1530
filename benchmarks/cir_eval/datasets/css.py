"""CSS (Vo et al., CVPR 2019), as published.

    css_toy_dataset_novel2_small.dup.npy     {split: {"mods": [{"from", "to", "to_str"}],
                                              "objects_img": [...], "labels": [...]}}
    images/css_{split}_{number:06d}.png

The .npy file is a pickle inside; see `plain_pickle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cir_eval.datasets.files import existing
from cir_eval.datasets.plain_pickle import load_plain
from cir_infer.errors import DatasetError, shown

__all__ = ["SPLITS", "Modification", "Split", "read_split"]

SPLITS = ("test", "train")
_FILE = "css_toy_dataset_novel2_small.dup.npy"


class Modification(NamedTuple):
    """A text and the scenes that it leads from and to, pairwise, by number."""

    text: str
    sources: list[int]
    targets: list[int]


class Split(NamedTuple):
    """A split: images by number, what each shows (equal labels are equal scenes), and modifications."""

    images: list[Path]
    labels: list[str]
    modifications: list[Modification]


def read_split(root: Path, split: str) -> Split:
    """Read a split.

    Raises:
        DatasetError: the file is missing, damaged, or holds more than plain values and arrays.
    """
    path = existing(root / _FILE, "the scenes and modifications")
    content = _read_object(path)
    try:
        part = content[split]
        count = len(part["objects_img"])
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
    return Split(images, labels, modifications)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
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
