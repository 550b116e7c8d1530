"""The programs of examples/, run as their heads say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import write_tiny_bundle

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a dozen photos, and tables about them."""
    folder = tmp_path_factory.mktemp("examples")
    write_tiny_bundle(folder / "artemis.cir")
    photos = folder / "photos"
    photos.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (folder / "catalogue.csv").write_text(
        "image,price,brand\n" + "".join(f"{n}.png,{10 * n},{'ab'[n % 2]}\n" for n in range(12))
    )
    (folder / "queries.csv").write_text("reference,text,target\n0.png,is red,5.png\n3.png,is longer,4.png\n")
    return folder


def run(folder: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    run_here = {"search", "refine", "filter", "bring_your_own", "evaluate", "vectors", "explain"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run_here


def test_search_and_refine(folder: Path) -> None:
    said = run(folder, "search", "artemis.cir", "photos", "photos/3.png", "is red")
    assert len([line for line in said.splitlines() if ".png" in line]) == 10
    said = run(
        folder, "refine", "artemis.cir", "photos.gallery", "photos/3.png", "is red", "is longer", "is green"
    )
    shown = [line.split(": ")[1].split(" ")[0] for line in said.splitlines()]
    assert len(shown) == len(set(shown)) == 3


def test_explain(folder: Path) -> None:
    run(folder, "search", "artemis.cir", "photos", "photos/3.png", "is red")  # which makes the gallery
    said = run(folder, "explain", "artemis.cir", "photos.gallery", "photos/3.png", "is red", "why.png")
    assert [line.split()[0] for line in said.splitlines()] == [
        "implicit_similarity",
        "explicit_matching",
        "is",
        "red",
    ]
    with Image.open(folder / "why.png") as sheet:
        assert sheet.width > 1000


def test_filter(folder: Path) -> None:
    said = run(
        folder,
        "filter",
        "artemis.cir",
        "photos",
        "catalogue.csv",
        "photos/3.png",
        "is red",
        "price < 50 and brand = a",
    )
    assert {line.split()[1] for line in said.splitlines()} == {"0.png", "2.png", "4.png"}


def test_evaluate(folder: Path) -> None:
    said = run(folder, "evaluate", "artemis.cir", "photos", "queries.csv")
    recalls = [float(line.split()[1]) for line in said.splitlines()]
    assert [line.split()[0] for line in said.splitlines()] == ["R@1", "R@5", "R@10"]
    assert recalls == sorted(recalls) and all(0 <= recall <= 100 for recall in recalls)


def test_bring_your_own(folder: Path) -> None:
    said = run(folder, "bring_your_own", "mine.cir", "--query", "photos/3.png", "is red")
    assert "gallery rows: differs by" in said and "the reference itself" in said


def test_vectors_of_another_model(folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "queries.npy", rows[[7, 31]])
    (folder / "items.jsonl").write_text("".join(f'{{"id": "item-{n}", "price": {n}}}\n' for n in range(40)))
    said = run(folder, "vectors", "some-model-96", "rows.npy", "items.jsonl", "queries.npy", "price < 30")
    first, second = said.split("query 1\n")
    assert first.splitlines()[0] == "query 0" and first.splitlines()[1].split()[:3] == [
        "1",
        "item-7",
        "1.000",
    ]
    assert "item-31" not in second and len(second.splitlines()) == 10
