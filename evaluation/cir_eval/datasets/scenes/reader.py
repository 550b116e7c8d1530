"""Reads the data set of scenes from disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cir_eval.datasets.generated import (
    Query,
    check_split,
    description_of,
    file_name,
    lines_of,
    queries_of,
)
from cir_eval.datasets.scenes import layout
from cir_eval.datasets.scenes.scene import Scene

__all__ = ["ScenesDataset", "Split"]


@dataclass(frozen=True)
class Split:
    """One split. All its scenes form its gallery.

    Attributes:
        root: the folder of the data set.
        name: one of `layout.SPLITS`.
        ids: the scenes' ids, in the order of the file; a scene's index is its row in a gallery.
        scenes: the scenes, aligned with `ids`.
        queries: the queries, in the order of the file.
    """

    root: Path
    name: str
    ids: tuple[str, ...]
    scenes: tuple[Scene, ...]
    queries: tuple[Query, ...]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id -> index into `ids`."""
        return {id_: i for i, id_ in enumerate(self.ids)}

    def image_folder(self, view: str) -> Path:
        """The folder with one PNG a scene in this view ("flat" or "shaded")."""
        return layout.image_folder(self.root, self.name, view)

    def image_path(self, scene_id: str, view: str) -> Path:
        """The picture of a scene."""
        return layout.image(self.root, self.name, view, scene_id)


@dataclass(frozen=True)
class ScenesDataset:
    """A data set on disk, opened.

    Attributes:
        root: its folder.
        seed: the seed that it was generated from.
        image_size: width and height of the pictures in pixels.
        views: the views that it has pictures of.
    """

    root: Path
    seed: int
    image_size: int
    views: tuple[str, ...]

    @staticmethod
    def open(root: str | Path) -> ScenesDataset:
        """Open a data set.

        Raises:
            DatasetError: there is none, it is incomplete, or of another format version.
        """
        root = Path(root)
        return description_of(
            layout.description(root),
            "a data set of scenes",
            f"generate one: cir-bench scenes {root}",
            (layout.FORMAT, layout.VERSION),
            lambda found: ScenesDataset(
                root, int(found["seed"]), int(found["image_size"]), tuple(map(file_name, found["views"]))
            ),
        )

    def split(self, name: str) -> Split:
        """Read a split, one of `layout.SPLITS`.

        Raises:
            DatasetError: no such split, or one of its files is damaged.
        """
        check_split(self.root, name, layout.SPLITS)
        path = layout.scenes(self.root, name)
        entries = list(lines_of(path, lambda e: (file_name(e["id"]), Scene.from_json(e["cells"]))))
        ids, scenes = tuple(id_ for id_, _ in entries), tuple(scene for _, scene in entries)
        return Split(
            self.root, name, ids, scenes, queries_of(layout.queries(self.root, name), set(ids), path)
        )
