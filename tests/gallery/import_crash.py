"""Kill an import, or fail its file operations, at any of them; then look at its place, and repeat it.

Run under faults.c (LD_PRELOAD): `python -m tests.gallery.import_crash FOLDER`. Prints one JSON object;
`violations` must be empty. tests/gallery/test_crash.py starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from cir_infer.commands.gallery import main
from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.gallery.drafts import is_vacant
from tests.gallery.crash import (
    ACKNOWLEDGED,
    ACTIONS,
    BROKEN,
    PROBE,
    REFUSED,
    Faults,
    Items,
    contents,
    in_child,
    store,
    template,
)

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
    totals: Counter[str] = Counter()
    points: dict[str, int] = {}
    violations: list[str] = []
    place, source = folder / "place", folder / "rows.safetensors"
    items = template(folder / "source")
    with Gallery.open(folder / "source") as gallery:
        gallery.export(source)
    for name, there in PLACES.items():

        def attempt(*fault: int, there: str | None = there) -> tuple[int, bytes]:
            shutil.rmtree(place, ignore_errors=True)
            (place / (there or ".")).mkdir(parents=True)
            return in_child(functools.partial(bring_in, faults, place, source, fault))  # type: ignore[arg-type]

        points[name] = int(attempt(0, 0, 0)[1].split()[1])
        for action, at in itertools.product(actions, range(1, points[name] + 1, stride)):
            code, said = attempt(at, *ACTIONS[action])
            killed = "killed" if code == -signal.SIGKILL else "broken"
            outcome = "acknowledged" if said else "refused" if code == REFUSED else killed
            problem = f"exit code {code}" if outcome == "broken" else None
            problem = problem or examine(place, source, items, bool(said))
            if problem:
                violations.append(f"{name}, {action} at {at} of {points[name]} ({outcome}): {problem}")
            totals[f"{action}: {outcome}"] += 1
    return {
        "runs": sum(totals.values()), "points": points, "outcomes": dict(totals), "violations": violations,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--actions", nargs="*", default=list(ACTIONS))
    parser.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(run(options.folder, options.actions, options.stride)))
