"""Shoes (Guo et al., NeurIPS 2018; images of Berg et al.), as naver/artemis lays it out.

images/womens/...jpg
annotations/split.{train,val}.json      list of image paths below images/
annotations/triplet.{train,val}.json    list of {ImageName, ReferenceImageName, RelativeCaption}
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cir_eval.datasets.files import existing, json_list, text_field
from cir_infer.errors import DatasetError

__all__ = ["SPLITS", "Triplet", "image_path", "read_split", "read_triplets"]

SPLITS = ("val", "train")


class Triplet(NamedTuple):
    """A reference, how the target differs, the target: image paths as in the split file."""

    reference: str
    caption: str
    target: str


def read_split(root: Path, split: str) -> list[str]:
    """The images of a split, as paths below images/.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = root / "annotations" / f"split.{split}.json"
    names = json_list(path, "a list of image paths")
    if not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path} holds something else than image paths; download it again")
    return names


def read_triplets(root: Path, split: str) -> list[Triplet]:
    """The triplets of a split.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = root / "annotations" / f"triplet.{split}.json"
    return [
        Triplet(
            text_field(entry, "ReferenceImageName", path),
            text_field(entry, "RelativeCaption", path),
            text_field(entry, "ImageName", path),
        )
        for entry in json_list(path, "a list of triplets")
    ]


def image_path(root: Path, name: str) -> Path:
    """Where an image lies."""
    return existing(root / "images", "the images") / name
