"""Where the files of the data set lie: see docs/emoji.md, which both the builder and the reader follow."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "FORMAT",
    "SPLITS",
    "VERSION",
    "description",
    "draft",
    "emoji",
    "image",
    "notice",
    "queries",
    "tarballs",
]

FORMAT = "cir-emoji"
VERSION = 1
SPLITS = ("train", "validation", "test")


def description(root: Path) -> Path:
    """What the data set is; written last, so its presence says that the data set is whole."""
    return root / "emoji.json"


def draft(root: Path) -> Path:
    """Says that the folder is ours while the data set is not whole yet."""
    return root / "emoji.draft"


def emoji(root: Path) -> Path:
    """All emoji, one JSON object a line; their order is that of gallery rows."""
    return root / "emoji.jsonl"


def queries(root: Path, split: str) -> Path:
    """The queries of a split, one JSON object a line."""
    return root / f"{split}.jsonl"


def image(root: Path, style: str, id_: str) -> Path:
    """The picture of one emoji."""
    return root / style / f"{id_}.png"


def notice(root: Path, style: str) -> Path:
    """Whose the pictures of a style are, and under which licence."""
    return root / style / "LICENCE.txt"


def tarballs(root: Path) -> Path:
    """The fetched packages, until the data set is whole."""
    return root / "packages"
