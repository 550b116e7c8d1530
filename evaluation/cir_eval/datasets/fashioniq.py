"""FashionIQ (Wu et al., CVPR 2021), as published and as naver/artemis and CLIP4Cir lay it out.

    annotations/captions/cap.{dress,shirt,toptee}.{train,val}.json     list of {target, candidate, captions}
    annotations/captions/pair2cap.{dress,shirt,toptee}.test.json       the same, published after the challenge
    annotations/image_splits/split.{dress,shirt,toptee}.{train,val,test}.json    list of image names
    img/<name>.jpg

CLIP4Cir's layout, captions/, image_splits/ and images/<name>.png at the top, is read too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cir_eval.datasets.files import existing, json_list, text_field
from cir_infer.errors import DatasetError
from cir_infer.foreign import has_file

__all__ = ["CATEGORIES", "SPLITS", "Pair", "image_paths", "read_gallery", "read_pairs"]

CATEGORIES = ("dress", "shirt", "toptee")
SPLITS = ("val", "train", "test")


class Pair(NamedTuple):
    """A reference ("candidate" in the files), two captions, the target: names of images.

    The target is None where the file does not give it: the challenge's own file of the test split.
    """

    reference: str
    captions: tuple[str, str]
    target: str | None


def read_pairs(root: Path, category: str, split: str) -> list[Pair]:
    """The pairs of a category. Only the first two captions of each are ever used.

    Raises:
        DatasetError: the file is missing or damaged, or a pair has fewer than two captions.
    """
    folder = _annotations(root) / "captions"
    path = folder / f"pair2cap.{category}.{split}.json"  # with the targets, where both are there
    if not has_file(path, DatasetError):
        path = folder / f"cap.{category}.{split}.json"
    pairs = []
    for entry in json_list(path, "a list of pairs"):
        reference = text_field(entry, "candidate", path)
        hidden = split == "test" and entry.get("target") is None
        target = None if hidden else text_field(entry, "target", path)
        captions = entry.get("captions")
        if (
            not isinstance(captions, list)
            or len(captions) < 2
            or not all(isinstance(c, str) for c in captions)
        ):
            raise DatasetError(
                f"{path}: the pair {reference}, {target} has no two captions; download it again"
            )
        pairs.append(Pair(reference, (captions[0], captions[1]), target))
    return pairs


def read_gallery(root: Path, category: str, split: str) -> list[str]:
    """The images of a category's split file, by name.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = _annotations(root) / "image_splits" / f"split.{category}.{split}.json"
    names = json_list(path, "a list of image names")
    if not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path} holds something else than image names; download it again")
    return names


def image_paths(root: Path, names: list[str]) -> list[Path]:
    """Where images lie.

    Raises:
        DatasetError: there is no folder of images, or it lacks one of them.
    """
    folder = root / "img" if (root / "img").is_dir() else existing(root / "images", "the images (or img/)")
    by_name = {path.stem: path for path in sorted(folder.iterdir())}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DatasetError(
            f"{folder} lacks {len(missing)} of {len(names)} images, e.g. {missing[0]}; "
            "a protocol needs all of them"
        )
    return [by_name[name] for name in names]


def _annotations(root: Path) -> Path:
    folder = root / "annotations"
    return folder if folder.is_dir() else root
