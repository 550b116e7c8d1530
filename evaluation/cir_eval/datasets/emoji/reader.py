"""Reads the data set of emoji from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cir_eval.datasets.emoji import layout
from cir_eval.datasets.emoji.emoji import Emoji
from cir_eval.datasets.generated import (
    Query,
    check_split,
    description_of,
    file_name,
    lines_of,
    queries_of,
)

__all__ = ["EmojiDataset", "Split"]


@dataclass(frozen=True)
class Split:
    """One split: queries over the gallery of all emoji.

    Attributes:
        root: the folder of the data set.
        name: one of `layout.SPLITS`.
        emoji: the gallery. That of validation lacks what is kept for the test, that of training what is kept
            for either.
        queries: the queries, in the order of the file.
        alike: style -> id -> all ids of `emoji` whose pictures nobody can tell from its own, if any.
    """

    root: Path
    name: str
    emoji: tuple[Emoji, ...]
    queries: tuple[Query, ...]
    alike: Mapping[str, Mapping[str, tuple[str, ...]]]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id -> index into `emoji`."""
        return {one.id: row for row, one in enumerate(self.emoji)}

    def images(self, style: str) -> list[Path]:
        """The pictures of all emoji in a style, aligned with `emoji`."""
        return [layout.image(self.root, style, one.id) for one in self.emoji]


@dataclass(frozen=True)
class EmojiDataset:
    """A data set on disk, opened.

    Attributes:
        root: its folder.
        seed: that its queries were drawn from.
        styles: style -> the licence of its pictures, in the order in which they were asked for.
        alike: style -> groups of ids whose pictures nobody can tell apart.
    """

    root: Path
    seed: int
    styles: Mapping[str, str]
    alike: Mapping[str, tuple[tuple[str, ...], ...]]

    @staticmethod
    def open(root: str | Path) -> EmojiDataset:
        """Open a data set.

        Raises:
            DatasetError: there is none, it is incomplete, or of another format version.
        """
        root = Path(root)
        return description_of(
            layout.description(root),
            "a data set of emoji",
            f"build it: cir-bench emoji {root}",
            (layout.FORMAT, layout.VERSION),
            partial(_described, root),
        )

    def split(self, name: str) -> Split:
        """Read a split, one of `layout.SPLITS`.

        Raises:
            DatasetError: no such split, or one of its files is damaged.
        """
        check_split(self.root, name, layout.SPLITS)
        path = layout.emoji(self.root)
        unseen = layout.SPLITS[layout.SPLITS.index(name) + 1 :]
        emoji = tuple(one for one, kept in lines_of(path, _emoji) if kept not in unseen)
        ids = {one.id for one in emoji}
        queries = queries_of(layout.queries(self.root, name), ids, path)
        alike = {
            style: {id_: tuple(one for one in group if one in ids) for group in groups for id_ in group}
            for style, groups in self.alike.items()
        }
        return Split(self.root, name, emoji, queries, alike)


def _described(root: Path, found: Any) -> EmojiDataset:
    styles = {file_name(name): style for name, style in found["styles"].items()}
    if not styles:
        raise ValueError("it has no style")
    return EmojiDataset(
        root,
        int(found["seed"]),
        {name: str(style["licence"]) for name, style in styles.items()},
        {name: tuple(tuple(map(str, group)) for group in style["alike"]) for name, style in styles.items()},
    )


def _emoji(entry: Any) -> tuple[Emoji, str]:
    found = Emoji.from_json(entry)
    file_name(found.id)
    return found, str(entry.get("held_out", ""))
