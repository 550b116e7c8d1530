"""Links between our documents lead somewhere, down to the heading; the tests that they name are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NAMES = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
).stdout.split()
DOCUMENTS = [ROOT / name for name in NAMES] or sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", "build", "demo"} & set(path.relative_to(ROOT).parts)
)


def links(text: str) -> list[str]:
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


def anchors(path: Path) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    wrong = []
    for link in links(document.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name) if name else document
        if document.name == "api.md" and anchor.startswith("cir_infer."):
            continue  # made from docstrings; `make docs` checks it
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def named_tests(text: str) -> list[tuple[str, str]]:
    """(file, test) of every `file.py::test_name`; `::test_name` is in the file named before."""
    found: list[tuple[str, str]] = []
    for file, test in re.findall(r"`([\w./]*)::(test_\w+)`", text):
        found.append((file or found[-1][0], test))
    return found


def is_there(file: str, test: str) -> bool:
    paths = [ROOT / file, ROOT / "tests" / "gallery" / file]
    return any(
        path.is_file() and re.search(rf"^def {test}\(", path.read_text("utf-8"), flags=re.M) for path in paths
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_is_there(document: Path) -> None:
    names = named_tests(document.read_text("utf-8"))
    assert [f"{file}::{test}" for file, test in names if not is_there(file, test)] == []


def test_every_guarantee_of_the_gallery_names_its_tests() -> None:
    table = (ROOT / "docs" / "gallery.md").read_text("utf-8").split("\n| What | Guarantee | Tests |\n")[1]
    rows = table.split("\n\n")[0].splitlines()[1:]
    assert len(rows) > 20
    assert [row for row in rows if not named_tests(row.rsplit(" | ", 1)[1])] == []


def test_there_are_documents_and_links() -> None:
    assert len(DOCUMENTS) > 15
    assert sum(len(links(path.read_text("utf-8"))) for path in DOCUMENTS) > 50


@pytest.mark.parametrize(
    "picture", sorted((ROOT / "docs" / "images").glob("*.png")), ids=lambda path: path.name
)
def test_pictures_have_all_their_colours(picture: Path) -> None:
    """A palette of 256 makes bands of a gradient, and a pink lid of a purple one."""
    with Image.open(picture) as image:
        assert image.mode == "RGB"


def test_figures_of_the_readme_are_those_of_a_measurement() -> None:
    """Each follows from a table that `cir-bench report` writes, or from the page that it names."""
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    performance = (ROOT / "docs" / "performance.md").read_text("utf-8")
    first, scored = (
        [cell.strip() for cell in next(line for line in performance.splitlines() if kind in line).split("|")]
        for kind in ("| artemis float32, 224 px", "| 1,000,000 x 512 | 1 | cir/cpu, float32 |")
    )
    whole, refined = first[5], first[8]
    assert (
        first[4] == "15,000 float16"
        and "two cores of an AMD EPYC" in readme
        and first[1].startswith("AMD EPYC, 2")
    )
    assert f"takes {refined}, a query with a photograph {whole.removesuffix(' ms')} (medians" in readme
    assert f"in {scored[6].removesuffix('x reading')} times the time of reading" in readme
    explained = (ROOT / "docs" / "explanations.md").read_text("utf-8")
    growth = re.search(r"shares \(ours\)\*?\*? \| \*\*\d+%\*\* \| \*\*(\d+%)\*\*", explained)
    assert growth is not None and f"on the right one in {growth[1]}" in readme
    installing = (ROOT / "docs" / "installing.md").read_text("utf-8")
    for said in re.findall(r"(\d+ MB)", readme):
        assert said in installing, said
