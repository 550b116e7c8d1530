"""`make demo-emoji`: the committed model of emoji, with the commands a user would type.

Fetches Noto and OpenMoji (80 MB), exports, indexes and asks. The queries are of another seed than the model's
own data set; their answers are compositions that no training query held.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cir_eval.datasets.emoji.reader import EmojiDataset
from tools.demos.scenes import ask, one_of_each, run, tell_found

GALLERY, OTHER = "noto", "openmoji"
"""The styles: of the gallery, and of the reference of the last query."""

KINDS = ("tone", "gender", "role", "colour", "two")
"""One query of each of these kinds of modification is asked."""


def main() -> None:
    """Build, export, index, ask."""
    folder = Path("demo-emoji")
    data, bundle, gallery = folder / "emoji", folder / "artemis.cir", folder / "artemis.gallery"
    folder.mkdir(exist_ok=True)
    for old in (gallery, folder / "sheets"):  # the pictures stay: they are fetched once
        shutil.rmtree(old, ignore_errors=True)
    started = time.perf_counter()
    if not (data / "emoji.json").is_file():
        run("cir-bench", "emoji", "--styles", GALLERY, OTHER, "--train-families", "0", "--seed", "7", data)
    run("cir-export", "models/artemis-emoji/model.pt", "-o", bundle)
    run("cir-index", bundle, data / GALLERY)
    test = EmojiDataset.open(data).split("test")
    asked = one_of_each(test.queries, KINDS, folder / "sheets")
    across = folder / "sheets" / "across.png"
    first = [ask(bundle, query, data / GALLERY, sheet) for sheet, query in asked.items()]
    print(f"\nThe reference drawn by others, in {OTHER}; the gallery is {GALLERY}:")
    first.append(ask(bundle, next(iter(asked.values())), data / OTHER, across))
    tell_found(first, f"{len(test.emoji):,} emoji", [*asked, across], started, bundle)


if __name__ == "__main__":
    main()
