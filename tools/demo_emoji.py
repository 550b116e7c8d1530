"""`make demo-emoji`: the committed model of emoji, with the commands a user would type.

Fetches Noto and OpenMoji (80 MB), exports, indexes and asks. The queries are of another seed than the model's
own data set; their answers are compositions that no training query held.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from demo import ask, run

from cir_eval.datasets.emoji.reader import EmojiDataset

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
    chosen = [next(query for query in test.queries if query.kind == kind) for kind in KINDS]
    sheets = [folder / "sheets" / f"{number}-{query.kind}.png" for number, query in enumerate(chosen, 1)]
    across = folder / "sheets" / "across.png"
    across.parent.mkdir()
    first = [ask(bundle, query, data / GALLERY, sheet) for query, sheet in zip(chosen, sheets, strict=True)]
    print(f"\nThe reference drawn by others, in {OTHER}; the gallery is {GALLERY}:")
    first.append(ask(bundle, chosen[0], data / OTHER, across))
    print(f"\nFound at rank 1 among {len(test.emoji):,} emoji: {sum(first)} of {len(first)} targets.")
    print(f"Contact sheets, in {time.perf_counter() - started:.0f} s altogether:")
    for sheet in [*sheets, across]:
        print(f"  {sheet}")


if __name__ == "__main__":
    main()
