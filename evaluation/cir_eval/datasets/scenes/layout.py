"""Where the files of the data set lie: see docs/scenes.md, which both the generator and the reader follow."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FORMAT", "SPLITS", "VERSION", "description", "image", "image_folder", "queries", "scenes"]

FORMAT = "cir-scenes"
VERSION = 1
SPLITS = ("train", "validation", "test")


def description(root: Path) -> Path:
    """What the data set is; written last, so its presence says that the data set is whole."""
    return root / "scenes.json"


def scenes(root: Path, split: str) -> Path:
    """The scenes of a split, one JSON object a line."""
    return root / split / "scenes.jsonl"


def queries(root: Path, split: str) -> Path:
    """The queries of a split, one JSON object a line."""
    return root / split / "queries.jsonl"


def image_folder(root: Path, split: str, view: str) -> Path:
    """The pictures of all scenes of a split in one view."""
    return root / split / view


def image(root: Path, split: str, view: str, scene_id: str) -> Path:
    """The picture of one scene."""
    return image_folder(root, split, view) / f"{scene_id}.png"
