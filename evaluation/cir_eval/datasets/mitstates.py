"""MIT-States (Isola et al., CVPR 2015), as published: images/<adjective noun>/*.jpg.

The split by nouns is that of google/tirg: 49 nouns are for testing, and occur nowhere in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cir_eval.datasets.files import existing
from cir_infer.errors import DatasetError

__all__ = ["SPLITS", "TEST_NOUNS", "Photo", "read_photos"]

SPLITS = ("test", "train")
_TEST_NOUNS = """
    armor bracelet bush camera candy castle ceramic cheese clock clothes coffee fan fig fish foam forest
    fruit furniture garden gate glass horse island laptop lead lightning mirror orange paint persimmon
    plastic plate potato road rubber sand shell sky smoke steel stream table tea tomato vacuum wax wheel
    window wool
"""
TEST_NOUNS = frozenset(_TEST_NOUNS.split())


class Photo(NamedTuple):
    """A photograph of a noun in a state."""

    path: Path
    adjective: str
    noun: str


def read_photos(root: Path, split: str) -> list[Photo]:
    """The photographs of a split, in the order of their paths. Folders named "adj ..." hold no state.

    Raises:
        DatasetError: there are none.
    """
    images = existing(root / "images", "one folder for each adjective and noun")
    photos = []
    for folder in sorted(path for path in images.iterdir() if path.is_dir()):
        words = folder.name.split()
        if len(words) != 2 or words[0] == "adj" or (words[1] in TEST_NOUNS) != (split == "test"):
            continue
        photos += [Photo(path, *words) for path in sorted(folder.glob("*.jpg"))]
    if not photos:
        raise DatasetError(f"{images} holds no image of the {split} nouns; expected <adjective noun>/*.jpg")
    return photos
