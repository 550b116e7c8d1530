"""Kill an import, or fail its file operations, at any of them; then look at its place, and repeat it.

Run under faults.c (LD_PRELOAD): `python -m tests.gallery.import_crash FOLDER`. Prints one JSON object;
`violations` must be empty. tests/gallery/test_crash.py starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from cir_infer.commands.gallery import main
from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.gallery.disk.drafts import is_vacant
from tests.gallery.crash import PROBE, Faults, Items, contents, in_child, store, template
from tests.gallery.sweep import ACKNOWLEDGED, ACTIONS, BROKEN, REFUSED, let_each_fail

PLACES = {"new": None, "empty folder": "gallery", "volume": "gallery/lost+found"}
"""The folder that is there before an import into `gallery`."""


def bring_in(faults: Faults, place: Path, source: Path, fault: tuple[int, int, int], pipe: int) -> int:
    """In a child: `cir-gallery import`, with one fault armed."""
    faults.arm(bytes(place), *fault)
    code = command(place, source)[0]
    if code == 0:
        os.write(pipe, b"acknowledged %d" % faults.count())
    return {0: ACKNOWLEDGED, 1: REFUSED}.get(code, BROKEN)


def command(place: Path, source: Path) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        options = ["import", str(place / "gallery"), str(source), "--unknown-fingerprint"]
        return main(options), said.getvalue()


def examine(place: Path, source: Path, items: Items, acknowledged: bool) -> str | None:
    """What is wrong with the place of an import, and with the next import to it; None for nothing."""
    path = place / "gallery"
    whole = (path / "catalogue.sqlite").exists()
    if not whole and (acknowledged or (path.exists() and not is_vacant(path))):
        return f"neither empty nor a gallery: {sorted(file.name for file in path.glob('*'))}"
    code, said = command(place, source)
    if code != whole or (whole and "already exists; open it" not in said):
        return f"the import that was repeated ended with {code}, {said!r}"
    try:
        with Gallery.open(path) as gallery:
            if contents(gallery) != items or not gallery.verify().ok:
                return f"it holds {len(gallery)} of {len(items)} items; {gallery.verify().problems}"
            store(gallery, PROBE)
        Gallery.create(place / "next", dimension=8).close()
    except CirError as error:
        return f"{type(error).__name__}: {error}"
    left = [str(file.relative_to(place)) for file in place.rglob("*cir-draft*")]
    # That of a whole gallery beside its place: only the lock, which goes when the name is used again.
    left = [name for name in left if "/" in name or not (whole and name.endswith(".lock"))]
    return f"left behind: {left}" if left else None


def run(folder: Path, actions: list[str], stride: int) -> dict[str, Any]:
    """Let each operation of an import fail in each way."""
    faults = Faults()
    place, source = folder / "place", folder / "rows.safetensors"
    items = template(folder / "source")
    with Gallery.open(folder / "source") as gallery:
        gallery.export(source)

    def attempt(name: str, fault: tuple[int, int, int]) -> tuple[int, bytes]:
        shutil.rmtree(place, ignore_errors=True)
        (place / (PLACES[name] or ".")).mkdir(parents=True)
        return in_child(functools.partial(bring_in, faults, place, source, fault))

    def problem_of(name: str, action: str, outcome: str) -> str | None:
        return examine(place, source, items, outcome == "acknowledged")

    return let_each_fail(PLACES, actions, stride, attempt, problem_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--actions", nargs="*", default=list(ACTIONS))
    parser.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(run(options.folder, options.actions, options.stride)))
