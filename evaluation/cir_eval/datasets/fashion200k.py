"""Fashion200K (Han et al., ICCV 2017), as google/tirg and naver/artemis lay it out.

labels/<category>_{train,test}_detect_all.txt     tab-separated: image path, score, caption
test_queries.txt                                  "source target" a line (google/tirg)
women/...                                         the images; naver/artemis leaves "women/" out
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cir_eval.datasets.files import existing, lines
from cir_infer.errors import DatasetError, shown

__all__ = ["SPLITS", "Item", "image_path", "modification", "read_items", "read_queries"]

SPLITS = ("test",)
_MARKS = {".": "dotmark", "?": "questionmark", "&": "andmark", "*": "starmark"}


class Item(NamedTuple):
    """An image of the catalogue: its path in the label files, and its caption with marks spelled out."""

    path: str
    caption: str


def read_items(root: Path, split: str) -> list[Item]:
    """The images of a split, label file by label file in the order of their names.

    The authors take the files in the order of the folder's listing, which differs between machines; no
    metric depends on it, except through equal scores.

    Raises:
        DatasetError: there are no label files, or a line is damaged.
    """
    folder = existing(root / "labels", "the label files")
    files = sorted(folder.glob(f"*{split}*.txt"))
    if not files:
        raise DatasetError(f"{folder} holds no label file of the split {shown(split)}")
    items = []
    for file in files:
        for line in lines(file, "image paths and captions"):
            fields = line.split("\t")
            if len(fields) != 3:
                raise DatasetError(f"{file}: expected path, score and caption in {shown(line[:60])}")
            items.append(Item(fields[0], _spelled(fields[2])))
    return items


def read_queries(root: Path) -> list[tuple[str, str]]:
    """The test queries: (source, target) paths.

    Raises:
        DatasetError: the file is missing, or a line is damaged.
    """
    path = root / "test_queries.txt"
    queries = []
    for line in lines(path, "the test queries"):
        fields = line.split()
        if len(fields) != 2:
            raise DatasetError(f"{path}: expected two image paths in {shown(line[:60])}")
        queries.append((fields[0], fields[1]))
    return queries


def modification(source: str, target: str) -> str:
    """The text "replace X with Y", of the first word of each caption that the other lacks (or its last)."""
    return f"replace {_first_other(source, target)} with {_first_other(target, source)}"


def image_path(root: Path, item: Item) -> Path:
    """Where an image lies."""
    path = root / item.path
    return path if path.is_file() else root / item.path.replace("women/", "", 1)


def _first_other(caption: str, other: str) -> str:
    words, known = caption.split(), set(other.split())
    if not words:
        raise DatasetError("a caption of Fashion200K is empty; download the label files again")
    return next((word for word in words if word not in known), words[-1])


def _spelled(caption: str) -> str:
    caption = caption.strip()
    for mark, word in _MARKS.items():
        caption = caption.replace(mark, word)
    return caption
