"""Builds the data set from the packages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cir_eval.datasets.emoji import layout
from cir_eval.datasets.emoji.alike import Look, alike, look_of
from cir_eval.datasets.emoji.drawing import Plan, draw_queries
from cir_eval.datasets.emoji.emoji import Emoji, emoji_of
from cir_eval.datasets.emoji.fetching import Progress, fetched
from cir_eval.datasets.emoji.held_out import held_out
from cir_eval.datasets.emoji.packages import STYLES, Style
from cir_eval.datasets.emoji.pictures import SIZE, on_white, svg_support
from cir_eval.datasets.emoji.tarballs import pictures_of
from cir_eval.datasets.generated import query_to_json, write_lines
from cir_infer.errors import DatasetError, UsageError, shown
from cir_infer.inputs.opening import why
from cir_infer.processes.locked_files import alone_in

__all__ = ["build"]

_FEWEST = 2


def build(
    root: Path,
    styles: Sequence[Style],
    plan: Plan,
    given: Path | None = None,
    progress: Progress = lambda done, *_: done,
) -> dict[str, Any]:
    """Write the data set.

    Args:
        root: a folder that does not exist, is empty, or holds what an interrupted attempt left.
        styles: some of `packages.STYLES`; the gallery holds what all of them have.
        plan: which queries to draw.
        given: a folder with the packages' tarballs; None fetches them.
        progress: see `Progress`.

    Returns:
        What was written to the description file.

    Raises:
        UsageError: no style, or one twice.
        DatasetError: the folder holds something else or cannot be written, or a package cannot be had.
    """
    names = [style.name for style in styles]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"styles {shown(names)}; expected some of {', '.join(STYLES)}, each once")
    if any(style.suffix == ".svg" for style in styles):
        svg_support()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone_in(root, DatasetError, "makes this data set"):
            _begin(root)
            return _write(root, styles, plan, given, progress)
    except OSError as error:
        raise DatasetError(f"cannot write the data set to {root}: {why(error)}") from error


def _begin(root: Path) -> None:
    """Only an attempt of our own is continued, and nothing of anybody else is written over."""
    if not layout.draft(root).is_file() and any(root.iterdir()):
        raise DatasetError(
            f"{root} exists and is not an empty folder; name another one, remove it, or name one in which "
            "this command was interrupted"
        )
    layout.draft(root).touch()


def _write(
    root: Path, styles: Sequence[Style], plan: Plan, given: Path | None, progress: Progress
) -> dict[str, Any]:
    # All packages first, so that a failing network costs no more than it must.
    tarballs = [fetched(style.package, layout.tarballs(root), given, progress) for style in styles]
    looks: dict[str, dict[str, Look]] = {}
    for style, tarball in zip(styles, tarballs, strict=True):
        looks[style.name] = _write_pictures(root, style, tarball, progress)
    ids = sorted(set.intersection(*map(set, looks.values())))
    emoji = emoji_of(ids)
    splits = draw_queries(emoji, plan)
    if not any(one.topic for one in emoji):
        raise DatasetError(
            f"the styles {', '.join(looks)} share no emoji that can be asked about; expected the "
            "packages of emoji"
        )
    for name in looks:
        for id_ in looks[name].keys() - set(ids):
            layout.image(root, name, id_).unlink()
    for name in STYLES.keys() - looks.keys():  # an interrupted attempt may have asked for more
        shutil.rmtree(layout.notice(root, name).parent, ignore_errors=True)
    write_lines(layout.emoji(root), map(_line, emoji))
    for split, queries in splits.items():
        write_lines(layout.queries(root, split), map(query_to_json, queries))
    description = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "seed": plan.seed,
        "image_size": SIZE,
        "emoji": len(ids),
        "styles": {
            style.name: {
                "package": f"{style.package.name} {style.package.version}",
                "licence": style.licence,
                "credit": style.credit,
                "alike": alike({id_: looks[style.name][id_] for id_ in ids}),
            }
            for style in styles
        },
        "splits": {split: len(queries) for split, queries in splits.items()},
        "hard_negatives": plan.hard_negatives,
    }
    shutil.rmtree(layout.tarballs(root), ignore_errors=True)
    layout.draft(root).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    layout.draft(root).replace(layout.description(root))
    return description


def _write_pictures(root: Path, style: Style, tarball: Path, progress: Progress) -> dict[str, Look]:
    """Write a style's pictures; id -> what it looks like."""
    folder = layout.notice(root, style.name).parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layout.notice(root, style.name).write_text(style.notice(SIZE), encoding="utf-8")
    looks: dict[str, Look] = {}

    def written() -> Iterable[int]:
        for id_, content in pictures_of(tarball, style.folder, style.suffix):
            picture = on_white(content, style.suffix, f"{style.name}'s {id_}")
            picture.save(layout.image(root, style.name, id_))
            looks[id_] = look_of(picture)
            yield len(looks)

    for _ in progress(written(), 0, style.name):
        pass
    if len(looks) < _FEWEST:
        raise DatasetError(f"{tarball} holds no pictures in {style.folder}; expected {style.package.file}")
    return looks


def _line(emoji: Emoji) -> dict[str, Any]:
    split = held_out(emoji) if emoji.topic else ""
    return {**emoji.to_json(), **({"held_out": split} if split else {})}
