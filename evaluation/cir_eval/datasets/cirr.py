"""CIRR (Liu et al., ICCV 2021), as published, as CLIP4Cir and as naver/artemis lay it out.

    captions/cap.rc2.{train,val,test1}.json
    image_splits/split.rc2.{train,val,test1}.json      {name: "./dev/name.png"}; naver/artemis: images_splits
    dev/, test1/, train/                               the images
    img_feat_res152/dev/name.pkl                       naver/artemis: pre-extracted features, pickled arrays

The first two may lie in a folder cirr/ (CLIP4Cir).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cir_eval.datasets.files import json_list, json_object, text_field
from cir_eval.datasets.plain_pickle import load_plain
from cir_infer.errors import DatasetError
from cir_infer.foreign import opened_file

__all__ = [
    "SPLITS",
    "VERSION",
    "Triplet",
    "has_features",
    "image_paths",
    "read_features",
    "read_gallery",
    "read_triplets",
]

_log = logging.getLogger(__name__)

SPLITS = ("val", "test1", "train")
VERSION = "rc2"


class Triplet(NamedTuple):
    """One annotation: names of images.

    Attributes:
        pair: the pair's number, as the test server wants it.
        reference: the reference.
        caption: how the target differs.
        target: the target; None where the answer is not published.
        soft_targets: what finding other images is worth, by name.
        members: the six images of its subset.
    """

    pair: str
    reference: str
    caption: str
    target: str | None
    soft_targets: dict[str, float]
    members: list[str]


def read_triplets(root: Path, split: str) -> list[Triplet]:
    """The annotations of a split.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = _annotations(root) / "captions" / f"cap.{VERSION}.{split}.json"
    triplets = []
    for entry in json_list(path, "a list of annotations"):
        reference, caption = text_field(entry, "reference", path), text_field(entry, "caption", path)
        try:
            triplets.append(
                Triplet(
                    str(entry["pairid"]),
                    reference,
                    caption,
                    entry.get("target_hard"),
                    {str(name): float(gain) for name, gain in entry.get("target_soft", {}).items()},
                    [str(name) for name in entry["img_set"]["members"]],
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{path}: an annotation lacks {error}; download the file again") from error
    return triplets


def read_gallery(root: Path, split: str) -> dict[str, str]:
    """The images of a split: path below the root by name, in the order of the file.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    annotations = _annotations(root)
    folder = annotations / "image_splits"
    if not folder.is_dir():
        folder = annotations / "images_splits"
    path = folder / f"split.{VERSION}.{split}.json"
    return {
        name: text_field({name: place}, name, path)
        for name, place in json_object(path, "image paths by name").items()
    }


def image_paths(root: Path, gallery: dict[str, str]) -> list[Path]:
    """Where the images of a gallery lie."""
    return [root / place for place in gallery.values()]


def has_features(root: Path) -> bool:
    """Whether pre-extracted features are there."""
    return (_annotations(root) / "img_feat_res152").is_dir()


def read_features(root: Path, gallery: dict[str, str]) -> list[npt.NDArray[np.float32]]:
    """Pre-extracted features of a gallery, float32 (F,) each.

    An image without a file gets zeros, as with naver/artemis; a warning says how many there are.

    Raises:
        DatasetError: there is no file at all, or one is damaged or holds no array of numbers.
    """
    folder = _annotations(root) / "img_feat_res152"
    paths = [folder / Path(place).with_suffix(".pkl") for place in gallery.values()]
    found = {path: _feature(path) for path in paths if path.is_file()}
    if not found:
        raise DatasetError(f"{folder} holds no features of the split's images; expected e.g. {paths[0]}")
    missing = len(paths) - len(found)
    if missing:
        _log.warning(
            "%s: %d of %d images have no features; zeros stand for them", folder, missing, len(paths)
        )
    zeros = np.zeros_like(next(iter(found.values())))
    return [found.get(path, zeros) for path in paths]


def _feature(path: Path) -> npt.NDArray[np.float32]:
    try:
        with opened_file(path) as file:
            value = load_plain(file)
        # A list in a list, again and again, is small in a pickle and without an end in an array.
        if not isinstance(value, np.ndarray) and not all(isinstance(one, (int, float)) for one in value):
            raise TypeError("it holds no array of numbers")
        feature = np.asarray(value, np.float32)
    except Exception as error:  # a damaged pickle answers with anything
        raise DatasetError(f"{path} cannot be read ({error}); extract it again") from error
    return feature.reshape(-1)


def _annotations(root: Path) -> Path:
    return root / "cirr" if (root / "cirr" / "captions").is_dir() else root
