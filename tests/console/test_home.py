"""~ is the user's folder wherever a command is told a place."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cir_infer.commands import index, query
from cir_infer.console.common import CirParser
from cir_infer.console.environment import take_environment
from cir_infer.console.home import at_home
from tests.bundles import write_tiny_bundle


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~/shop", "/home/ada/shop"),
        ("~", "/home/ada"),
        ("--gallery=~/shop", "/home/ada/shop"),
        ("anna=~/DCIM", "/home/ada/DCIM"),
        ("train.out=~/runs", "/home/ada/runs"),
        ("photos/~/x", None),
        ("~shop", None),
        ("a ~/b", None),
        ("like ~/this = that", None),
        ("price < 3 and path =~/x", None),
        ("", None),
    ],
)
def test_what_is_the_folder_of_the_user(
    typed: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    before = typed[: typed.find("=") + 1] if meant is not None else ""
    assert at_home(typed) == (typed if meant is None else before + meant)


def test_no_folder_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, picture = write_tiny_bundle(tmp_path / "a.cir"), tmp_path / "one.png"
    Image.new("RGB", (20, 20), "red").save(picture)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert index.main([str(bundle), str(picture), "--gallery=~/few.gallery"]) == 0
    assert list(Path.cwd().iterdir()) == [] and (tmp_path / "home" / "few.gallery").is_dir()
    assert query.main([str(bundle), str(picture), "is red", "--gallery", "~/few.gallery"]) == 0


def test_what_the_environment_says_is_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    parser = CirParser("cir-serve", "Serve.", "cir-serve a.cir")
    parser.add_argument("--gallery", type=Path)
    take_environment(parser, "CIR_SERVE", {"CIR_SERVE_GALLERY": "~/shop.gallery"})
    assert parser.parse_args([]).gallery == Path("/home/ada/shop.gallery")
