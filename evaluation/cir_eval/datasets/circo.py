"""CIRCO (Baldrati et al., ICCV 2023), as published.

annotations/{val,test}.json
COCO2017_unlabeled/annotations/image_info_unlabeled2017.json
COCO2017_unlabeled/unlabeled2017/000000000001.jpg          twelve digits
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cir_eval.datasets.files import json_list, json_object, text_field
from cir_infer.errors import DatasetError, shown

__all__ = ["SPLITS", "Annotation", "read_annotations", "read_gallery"]

SPLITS = ("val", "test")


class Annotation(NamedTuple):
    """One query: numbers of images.

    Attributes:
        key: its number, as the test server wants it.
        reference: the reference.
        caption: how the targets differ.
        concept: what reference and targets have in common, in words.
        target: the first target; None on the test split.
        targets: all of them; empty on the test split.
        aspects: what the caption is about, e.g. "cardinality", "negation"; empty where the file does not say.
    """

    key: str
    reference: int
    caption: str
    concept: str
    target: int | None
    targets: tuple[int, ...]
    aspects: tuple[str, ...] = ()


def read_annotations(root: Path, split: str) -> list[Annotation]:
    """The queries of a split.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = root / "annotations" / f"{split}.json"
    found = []
    for entry in json_list(path, "a list of queries"):
        caption, concept = (text_field(entry, name, path) for name in ("relative_caption", "shared_concept"))
        targets = entry.get("gt_img_ids", [])
        if not isinstance(targets, list):
            raise DatasetError(f"{path}: gt_img_ids is {shown(targets)}; download the file again")
        aspects = entry.get("semantic_aspects", [])
        if not isinstance(aspects, list) or not all(isinstance(a, str) and 0 < len(a) <= 60 for a in aspects):
            raise DatasetError(f"{path}: semantic_aspects is {shown(aspects)}; download the file again")
        target = entry.get("target_img_id")
        found.append(
            Annotation(
                str(_number(entry.get("id"), "id", path)),
                _number(entry.get("reference_img_id"), "reference_img_id", path),
                caption,
                concept,
                None if target is None else _number(target, "target_img_id", path),
                tuple(_number(one, "gt_img_ids", path) for one in targets),
                tuple(dict.fromkeys(aspects)),
            )
        )
    return found


def read_gallery(root: Path) -> dict[int, Path]:
    """The images by their number, in the order of the file.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    folder = root / "COCO2017_unlabeled"
    path = folder / "annotations" / "image_info_unlabeled2017.json"
    images = json_object(path, "the list of images").get("images")
    if not isinstance(images, list) or not images:
        raise DatasetError(f"{path} has no list of images; download it again")
    numbers = [_number(one.get("id") if isinstance(one, dict) else None, "id", path) for one in images]
    return {number: folder / "unlabeled2017" / f"{number:012d}.jpg" for number in numbers}


def _number(value: Any, name: str, path: Path) -> int:
    if type(value) is not int or value < 0:
        raise DatasetError(f"{path}: {name} is {shown(value)}; expected a whole number, download it again")
    return value
