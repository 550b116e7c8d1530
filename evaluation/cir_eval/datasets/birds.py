"""Birds-to-Words (Forbes et al., EMNLP 2019).

    birds-to-words-v1.0.tsv      as published: eleven columns, one annotation a line
    images/<photo id>.jpg        the photographs; the id is the last part of img1ObservationURL

The publishers give URLs, not images; the names of the files are ours.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from cir_eval.datasets.files import existing, lines
from cir_infer.errors import DatasetError, shown

__all__ = ["SPLITS", "Comparison", "has_split", "image_path", "read_comparisons"]

SPLITS = ("test", "val", "train")
_COLUMNS = ("img1ObservationURL", "img2ObservationURL", "split", "description")


class Comparison(NamedTuple):
    """Two photographs (by id) and a paragraph on how the second differs from the first."""

    first: str
    second: str
    description: str


def has_split(root: Path, split: str) -> bool:
    """Whether the file has an annotation of a split."""
    return bool(_read(root, split))


def read_comparisons(root: Path, split: str) -> list[Comparison]:
    """The annotations of a split, in the order of the file.

    Raises:
        DatasetError: the file is missing, lacks a column, or holds none of the split.
    """
    found = _read(root, split)
    if not found:
        raise DatasetError(f"{_path(root)} has no annotation of the split {shown(split)}")
    return found


def _read(root: Path, split: str) -> list[Comparison]:
    path = _path(root)
    reader = csv.DictReader(lines(path, "the annotations"), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise DatasetError(
            f"{path} has no column {shown(missing[0])}; expected the published file with its header"
        )
    return [
        Comparison(_photo(row["img1ObservationURL"]), _photo(row["img2ObservationURL"]), row["description"])
        for row in reader
        if row["split"] == split and row["description"]
    ]


def image_path(root: Path, photo: str) -> Path:
    """Where a photograph lies."""
    return existing(root / "images", "the photographs as <photo id>.jpg") / f"{photo}.jpg"


def _path(root: Path) -> Path:
    return root / "birds-to-words-v1.0.tsv"


def _photo(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]
