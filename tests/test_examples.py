"""The programs of examples/, run as their heads say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows
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
    run_here = {
        "search",
        "refine",
        "filter",
        "bring_your_own",
        "evaluate",
        "vectors",
        "explain",
        "in_duckdb",
        "in_qdrant",
        "for_vespa",
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run_here


def test_search_and_refine(folder: Path) -> None:
    said = run(folder, "search", "artemis.cir", "photos", "photos/3.png", "is red")
    assert len([line for line in said.splitlines() if ".png" in line]) == 10
    again = run(folder, "search", "artemis.cir", "nowhere", "photos/3.png", "is red")
    assert "artemis.gallery is there already: what it holds is asked, whatever lies in nowhere" in again
    said = run(
        folder, "refine", "artemis.cir", "artemis.gallery", "photos/3.png", "is red", "is longer", "is green"
    )
    shown = [line.split(": ")[1].split(" ")[0] for line in said.splitlines()]
    assert len(shown) == len(set(shown)) == 3


def test_explain(folder: Path) -> None:
    run(folder, "search", "artemis.cir", "photos", "photos/3.png", "is red")  # which makes the gallery
    said = run(folder, "explain", "artemis.cir", "artemis.gallery", "photos/3.png", "is red", "why.png")
    assert [line.split()[0] for line in said.splitlines()] == [
        "implicit_similarity",
        "explicit_matching",
        "is",
        "red",
    ]
    with Image.open(folder / "why.png") as sheet:
        assert sheet.width > 1000


def test_filter(folder: Path) -> None:
    for where, wanted in (("price < 50 and brand = a", {0, 2, 4}), ("price > 90", {10, 11})):  # and again
        said = run(
            folder, "filter", "artemis.cir", "photos", "catalogue.csv", "photos/3.png", "is red", where
        )
        assert {line.split()[1] for line in said.splitlines()} == {f"{number}.png" for number in wanted}


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
    run(folder, "vectors", "some-model-96", "rows.npy", "items.jsonl", "queries.npy")  # and again:
    said = run(folder, "vectors", "some-model-96", "rows.npy", "items.jsonl", "queries.npy", "price < 30")
    first, second = said.split("query 1\n")
    assert first.splitlines()[0] == "query 0" and first.splitlines()[1].split()[:3] == [
        "1",
        "item-7",
        "1.000",
    ]
    assert "item-31" not in second and len(second.splitlines()) == 10


@pytest.mark.parametrize(("name", "module"), [("in_duckdb", "duckdb"), ("in_qdrant", "qdrant_client")])
def test_databases_give_the_same_answer(folder: Path, name: str, module: str) -> None:
    """Their products are of float32, so scores agree to a millionth, and items but those that lie closer."""
    pytest.importorskip(module, reason=f"{module} is not installed, as the head of examples/{name}.py says")
    run(folder, "search", "artemis.cir", "photos", "photos/3.png", "is red")
    *lines, last = run(folder, name, "artemis.cir", "artemis.gallery", "photos/3.png", "is red").splitlines()
    assert len(lines) == 10 and "times as long" in last
    for line in lines:
        theirs, score, ours, exact = line.split()
        assert float(score) == pytest.approx(float(exact), abs=1e-5)
        assert theirs == ours or abs(float(score) - float(exact)) < 1e-6


def test_the_rank_profile_for_vespa_computes_the_score(folder: Path) -> None:
    """What its expressions say, evaluated with NumPy, is what our scorer gives. No Vespa has read it."""
    said = run(folder, "for_vespa", "artemis.cir", "items.sd", "photos/3.png", "is red")
    query, schema = json.loads(said), (folder / "items.sd").read_text()
    rows = np.random.default_rng(5).standard_normal((9, 8)).astype(np.float32)
    rows[4] = 0
    inputs = {name[6:]: np.array(value, np.float32) for name, value in query.items() if name[:6] == "input."}
    assert set(inputs) == set(re.findall(r"(query\(\w+\)) tensor<float>\(d\[8\]\)", schema))
    functions = dict(re.findall(r"function (\w+)\(\) \{\s+expression: (.*)", schema))
    (first,) = re.findall(r"first-phase \{\s+expression: (.*)", schema)
    terms = QueryTerms(
        *(np.stack([inputs[f"query({kind}{j})"] for j in range(len(functions))])[None] for kind in "nw"),
        tuple(functions),
    )
    for row in rows:
        words = {
            "query": lambda name: inputs[f"query({name})"],
            "attribute": lambda _, row=row: row,
            "reduce": lambda values, *_: values.sum(dtype=np.float64),
            "sqrt": np.sqrt,
            "where": lambda condition, yes, no: yes() if condition else no(),
        }
        values = {}
        for name, expression in functions.items():
            code = re.sub(r"(query|attribute)\((\w+)\)", r'\1("\2")', expression).replace(
                "sum, d", '"sum", "d"'
            )
            code = re.sub(r"^if\((.*> 0), (.*), 0\)$", r"where(\1, lambda: \2, lambda: 0)", code)
            values[name] = eval(code, words)
        top = make_scorer(Rows.of(row[None]), "reference").topk(terms, 1)
        assert sum(values[name] for name in first.split(" + ")) == pytest.approx(top.scores[0, 0], abs=1e-5)
        assert list(values.values()) == pytest.approx(top.terms[0, 0].tolist(), abs=1e-5)
    for left, right in ("{}", "()", "[]"):
        assert schema.count(left) == schema.count(right)
