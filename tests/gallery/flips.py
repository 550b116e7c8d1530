"""Flip one bit anywhere in a gallery: opening or `verify` notices, or it makes no difference.

`python -m tests.gallery.flips FOLDER --count 10000` prints one JSON object; `violations` must be empty.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue.tables import Encoding
from cir_infer.gallery.changes.reencoding import Reencoding
from tests.gallery.support import vectors

WHERE = (
    "price >= 3", "price < 5.5", "parity = odd", "parity prefix ev", "tags in (a, b)", "not note is null",
    "size.h > 2", "parity > f",
)  # fmt: skip


def history(path: Path, dtype: str) -> Gallery:
    """A gallery with something in every table: replaced, removed and compacted items."""
    gallery = Gallery.create(path, dimension=8, dtype=dtype, fingerprint="f" * 64)
    for part in range(3):
        gallery.add_vectors(
            ids=[f"{part}-{i} é" for i in range(12)],
            vectors=vectors(12, part),
            metadata=[
                {"price": i / 2, "parity": "odd" if i % 2 else "even", "tags": ["a", "c"][: i % 3]}
                | ({"note": "x", "size": {"h": i}} if i % 4 == 0 else {})
                for i in range(12)
            ],
            sources=[f"/photos/{part}/{i}.jpg" if i % 3 else None for i in range(12)],
            stamps=[f"stamp {i}" if i % 2 else None for i in range(12)],
        )
    gallery.remove(["0-3 é", "1-4 é"])
    gallery.compact()
    gallery.add_vectors(ids=["0-1 é", "late"], vectors=vectors(2, 9), existing="replace")
    gallery.remove(["2-2 é"])
    return gallery


def closed(path: Path) -> None:
    history(path, "float16").close()


def killed(path: Path) -> None:
    """With its log, retired rows and dropped items, as a killed writer beside a reader leaves it."""
    with history(path.with_name("live"), "int8") as gallery:
        held = gallery.snapshot()
        gallery.compact()
        gallery.add_vectors(ids=["last"], vectors=vectors(1, 30))
        shutil.copytree(gallery.path, path)
        del held
    shutil.rmtree(path.with_name("live"))


def reencoded(path: Path) -> None:
    """In the middle of a re-encoding."""
    with history(path, "float32") as gallery:
        work = Reencoding(gallery._store, Encoding(0, "e" * 64, 16, "float16"))
        keys = work.missing()[:10]
        work.add([int(key) for key in keys], vectors(len(keys), 5, 16))


TEMPLATES: tuple[Callable[[Path], None], ...] = (closed, killed, reencoded)


def observed(gallery: Gallery) -> list[Any]:
    """Everything that a gallery says of what it holds."""
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    items = snapshot.items(rows)
    return [
        snapshot.generation, snapshot.fingerprint, snapshot.dimension, str(snapshot.rows.dtype), items,
        np.asarray(snapshot.rows.take(rows)).tolist(),
        gallery.held([item.id for item in items]), gallery.next_key,
        [snapshot.row(item.id) for item in items], gallery.items_from("/photos/1"),
        [np.flatnonzero(np.unpackbits(snapshot.where(where), bitorder="little")).tolist() for where in WHERE],
    ]  # fmt: skip


def places(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)


def chosen(rng: random.Random, files: list[Path]) -> tuple[Path, int]:
    """A file and a bit: uniform over all bits, over the files, or where something is written."""
    kind = rng.randrange(3)
    weights = [file.stat().st_size for file in files] if kind == 0 else None
    file = rng.choices(files, weights)[0]
    if kind == 2:
        filled = np.flatnonzero(np.frombuffer(file.read_bytes(), np.uint8))
        return file, int(rng.choice(filled)) * 8 + rng.randrange(8)
    return file, rng.randrange(file.stat().st_size * 8)


def flip(template: Path, place: Path, file: Path, bit: int) -> None:
    """A copy of a gallery with one bit flipped; unharmed row files are shared."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in (place, place / "rows", place / "readers"):
        folder.mkdir()
    for source in template.rglob("*"):
        if not source.is_file():
            continue
        target = place / source.relative_to(template)
        if source == file:
            data = bytearray(source.read_bytes())
            data[bit // 8] ^= 1 << bit % 8
            target.write_bytes(data)
        elif source.parent.name == "rows":
            os.link(source, target)
        else:
            shutil.copyfile(source, target)


def outcome(place: Path, expected: list[Any]) -> str:
    """found when opening, found by verify, or harmless; anything else is a violation."""
    try:
        with Gallery.open(place) as gallery:
            report = gallery.verify()
            try:
                same = observed(gallery) == expected
            except CirError:
                same = False
            if not report.ok:
                return "found by verify"
            if not same:
                return "VIOLATION: neither found nor harmless"
            gallery.add_vectors(ids=["new"], vectors=vectors(1, 1, gallery.dimension))
            gallery.remove(["new"])
            gallery.compact()
            return "harmless" if gallery.verify().ok else "VIOLATION: the next changes damaged it"
    except CirError:
        return "found when opening"
    except Exception:
        return f"VIOLATION: {traceback.format_exc(limit=-3)}"


def run(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Flip bits, one at a time."""
    templates = []
    for make in TEMPLATES:
        path = folder / make.__name__
        make(path)
        shutil.copytree(path, folder / "looked")
        with Gallery.open(folder / "looked") as gallery:
            assert gallery.verify().problems == []
            templates.append((path, places(path), observed(gallery)))
        shutil.rmtree(folder / "looked")
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    violations = []
    for number in range(count):
        template, files, expected = templates[number % len(templates)]
        file, bit = chosen(rng, files)
        flip(template, folder / "flipped", file, bit)
        result = outcome(folder / "flipped", expected)
        outcomes[result.partition(":")[0]] += 1
        if result.startswith("VIOLATION"):
            violations.append(f"{file.relative_to(folder)} bit {bit}: {result}")
    return {"flips": count, "outcomes": dict(outcomes), "violations": violations}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(run(options.folder, options.count, options.seed), indent=2))
