"""Kill a backup, or fail its file operations, at any of them; then look at the gallery and at both places.

Run under faults.c (LD_PRELOAD): `python -m tests.gallery.backup_crash FOLDER`. Prints one JSON object;
`violations` must be empty. tests/gallery/test_crash.py starts it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from tests.gallery.crash import Faults, Items, contents, in_child, new_items, store, template
from tests.gallery.sweep import ACKNOWLEDGED, ACTIONS, REFUSED, let_each_fail, replaced_by


def prepare(folder: Path, update: bool, link: bool) -> tuple[Items | None, Items]:
    """A gallery, and with `update` a backup that is behind it; what the backup holds, and what it should."""
    held = template(folder / "gallery")
    if not update:
        return None, held
    with Gallery.open(folder / "gallery") as gallery:
        gallery.backup(folder / "backup", link=link)
        store(gallery, new_items(21, ["new1", "new2", list(held)[2]]))
        gallery.remove([list(held)[4]])
        gallery.compact()
        store(gallery, new_items(22, ["new3"]))
        return held, contents(gallery)


def back_up(faults: Faults, place: Path, link: bool, fault: tuple[int, int, int], pipe: int) -> int:
    """In a child: one backup, with one fault armed."""
    faults.arm(bytes(place), *fault)
    try:
        with Gallery.open(place / "gallery", read_only=True) as gallery:
            gallery.backup(place / "backup", link=link)
            os.write(pipe, b"acknowledged")
    except CirError:
        return REFUSED
    os.write(pipe, b" %d" % faults.count())
    return ACKNOWLEDGED


def examine(place: Path, allowed: list[Items | None], link: bool) -> str | None:
    """What is wrong with the gallery, its backup, and the next backup; None for nothing."""
    try:
        found = None
        if (place / "backup").exists():
            with Gallery.open(place / "backup", read_only=True) as backup:
                if not backup.verify().ok:
                    return f"the backup is damaged: {backup.verify().problems}"
                found = contents(backup)
        if found not in allowed:
            return f"the backup holds {found and len(found)} items, none of the allowed states"
        with Gallery.open(place / "gallery") as gallery:
            if not gallery.verify().ok:
                return f"the gallery is damaged: {gallery.verify().problems}"
            gallery.backup(place / "backup", link=link)
            with Gallery.open(place / "backup", read_only=True) as backup:
                if contents(backup) != contents(gallery) or not backup.verify().ok:
                    return "the next backup is not what the gallery is"
    except CirError as error:
        return f"{type(error).__name__}: {error}"
    left = sorted(path.name for path in place.iterdir() if path.name not in ("gallery", "backup"))
    return f"left behind: {left}" if left else None


def run(folder: Path, actions: list[str], stride: int) -> dict[str, Any]:
    """Let each operation of a backup fail in each way."""
    faults = Faults()
    place = folder / "place"
    links: dict[str, bool] = {}
    states: dict[str, tuple[Items | None, Items]] = {}
    for update, link in itertools.product((False, True), (False, True)):
        name = f"{'update' if update else 'new'}, {'linked' if link else 'copied'}"
        links[name], states[name] = link, prepare(folder / f"start {name}", update, link)

    def attempt(name: str, fault: tuple[int, int, int]) -> tuple[int, bytes]:
        replaced_by(place, folder / f"start {name}")
        return in_child(functools.partial(back_up, faults, place, links[name], fault))

    def problem_of(name: str, action: str, outcome: str) -> str | None:
        before, after = states[name]
        # The last steps (a name, its fsync) may be refused when the backup is there already.
        return examine(place, [after] if outcome == "acknowledged" else [before, after], links[name])

    return let_each_fail(states, actions, stride, attempt, problem_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--actions", nargs="*", default=list(ACTIONS))
    parser.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(run(options.folder, options.actions, options.stride)))
