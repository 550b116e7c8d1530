"""`make demo`: from the committed model to answered queries, with the commands a user would type.

Every line that starts with `$` is a command run as shown. Prints at the end where the pictures are.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cir_eval.datasets.generated import Query
from cir_eval.datasets.scenes.reader import ScenesDataset

KINDS = ("colour", "shape", "place", "add", "remove")
"""One query of each of these kinds of modification is asked."""


def run(*command: str | Path, quiet: bool = False) -> str:
    """Run one of our commands from this environment, shown first; its standard output."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    program = Path(sys.executable).with_name(words[0])
    started = time.perf_counter()
    done = subprocess.run(
        [program, *words[1:]], check=False, text=True, stdout=subprocess.PIPE if quiet else None
    )
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why, in a line
    print(f"  ({time.perf_counter() - started:.1f} s)", flush=True)
    return done.stdout or ""


def ask(bundle: Path, query: Query, scenes: Path, sheet: Path) -> bool:
    """Ask one query of the test split and say where its target came; whether it came first."""
    answer = json.loads(
        run(
            "cir-query", bundle, scenes / f"{query.reference}.png", query.text,
            "--exclude", f"{query.reference}.png", "--sheet", sheet, "--json",
            quiet=True,
        )
    )  # fmt: skip
    ranks = [hit["rank"] for hit in answer["hits"] if hit["id"] == f"{query.target}.png"]
    place = f"at rank {ranks[0]}" if ranks else f"not among the first {len(answer['hits'])}"
    print(f'  {query.kind}: "{query.text}" -> the annotated target {query.target} is {place}')
    return ranks == [1]


def one_of_each(queries: Sequence[Query], kinds: Sequence[str], folder: Path) -> dict[Path, Query]:
    """The first query of each kind, by the contact sheet that it will have in a new folder."""
    folder.mkdir()
    chosen = [next(query for query in queries if query.kind == kind) for kind in kinds]
    return {folder / f"{number}-{query.kind}.png": query for number, query in enumerate(chosen, 1)}


def tell_found(
    first: Sequence[bool], among: str, sheets: Sequence[Path], started: float, bundle: Path
) -> None:
    """Say how many targets came first, where the sheets are, how long it took, and how to go on."""
    print(f"\nFound at rank 1 among {among}: {sum(first)} of {len(first)} targets.")
    print(f"Contact sheets, in {time.perf_counter() - started:.0f} s altogether:")
    for sheet in sheets:
        print(f"  {sheet}")
    activate = os.path.relpath(Path(sys.executable).with_name("activate"))
    print(f"To ask more, on a page at http://127.0.0.1:8080:\n  . {activate} && cir-serve {bundle}")


def main() -> None:
    """Generate, export, index, ask."""
    folder = Path("demo")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    started = time.perf_counter()
    data, bundle = folder / "scenes", folder / "artemis.cir"
    # Another seed than the model's own data set: neither these scenes nor these queries were seen before.
    run(
        *shlex.split("cir-bench scenes --gallery 5000 --train-families 0 --validation-queries 0 --seed 7"),
        data,
    )
    run("cir-export", "models/artemis-scenes/model.pt", "-o", bundle)
    scenes = data / "test" / "shaded"
    run("cir-index", bundle, scenes)
    queries = ScenesDataset.open(data).split("test").queries
    asked = one_of_each(queries, KINDS, folder / "sheets")
    explained = folder / "sheets" / "why.png"
    first = [ask(bundle, query, scenes, sheet) for sheet, query in asked.items()]
    why = next(iter(asked.values()))
    run(
        "cir-query", bundle, scenes / f"{why.reference}.png", why.text, "-k", "6",
        "--exclude", f"{why.reference}.png", "--explain", "--sheet", explained,
    )  # fmt: skip
    tell_found(first, "5,000 scenes", [*asked, explained], started, bundle)


if __name__ == "__main__":
    main()
