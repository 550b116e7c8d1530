"""Folders and patterns with all that people keep in them: every entry is indexed, listed, or counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cir_infer.errors import DatasetError, ImageError, UsageError
from cir_infer.indexing import formats
from cir_infer.indexing.items import Broken, Item, unfit
from cir_infer.indexing.manifests import ManifestSource
from cir_infer.indexing.source import Source
from cir_infer.indexing.sources import open_source, open_sources
from cir_infer.indexing.tars import TarSource
from tests.indexing.support import folder_of, picture, png


def read(source: Source) -> tuple[list[str], dict[str, str], dict[str, int]]:
    """Ids of the items, reasons of the broken ones by id, and what was left out."""
    entries = list(source.items())
    items = [entry.id for entry in entries if isinstance(entry, Item)]
    return items, {e.id: e.reason for e in entries if isinstance(e, Broken)}, dict(source.survey.left_out)


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("loop.png", "loop.png", "symbolic links"),
        ("long.png", "x" * 300 + ".png", "name too long"),
        ("away.png", "drive/1.png", "not mounted"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/*.png", "/**"])
def test_an_entry_that_cannot_be_examined_costs_itself(
    tmp_path: Path, name: str, target: str, reason: str, pattern: str
) -> None:
    folder = folder_of(tmp_path / "f", 3)
    (folder / name).symlink_to(target)
    items, broken, _ = read(open_source(f"{folder}{pattern}"))
    assert set(items) >= {"0.png", "2.png"}
    assert list(broken) == [name] and reason in broken[name].lower()


def test_names_one_by_one_that_cannot_be_examined_cost_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "f", 2)
    monkeypatch.chdir(tmp_path / "f")
    Path("loop.png").symlink_to("loop.png")
    Path("away.png").symlink_to("drive/1.png")
    (source,) = open_sources(["loop.png", "0.png", "away.png", "x" * 300 + ".png", "sub/1.png"])
    items, broken, _ = read(source)
    assert items == ["0.png", "sub/1.png"] and len(broken) == 3


def test_a_folder_without_permission_is_listed_and_seen_to_be_unseen(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = folder_of(tmp_path / "f", 2)
    (folder / "sub").chmod(0)
    source = open_source(str(folder))
    items, broken, _ = read(source)
    (folder / "sub").chmod(0o700)
    assert items == ["0.png"] and list(broken) == ["sub"]
    assert source.survey.unseen == [str(folder / "sub")]


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", 2)
    for name in ("a.txt", "b.TXT", "c.xmp", ".hidden.png", ".DS_Store", "odd.ending with spaces"):
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    (folder / "album").symlink_to(folder / "sub")
    (folder / "gone").symlink_to(tmp_path / "drive")
    source = open_source(str(folder))
    items, broken, left_out = read(source)
    assert items == ["0.png", "sub/1.png"] and broken == {}
    assert left_out == {
        ".txt": 2,
        ".xmp": 1,
        "hidden": 2,
        "odd endings": 1,
        "no regular files": 1,
        "links to folders": 1,
        "links to what is not there": 1,
    }
    # What is behind these links is not taken for removed.
    assert source.survey.unseen == [str(folder / "album"), str(folder / "gone")]
    read(source)
    assert source.survey.left_out.total() == 9, "a second pass counts anew"


def test_many_kinds_are_counted_together(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"x.e{number}").touch()
    _, _, left_out = read(open_source(str(tmp_path)))
    assert sum(left_out.values()) == 100 and len(left_out) < 50


@pytest.mark.parametrize("ending", [".jfif", ".JPG", ".mpo", ".pjpeg", ".apng", ".dib", ".pgm"])
def test_endings_that_pillow_reads_are_images(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(png(1))
    assert read(open_source(str(tmp_path)))[0] == [f"a{ending}"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "jpeg2000"])
def test_an_image_without_an_ending_is_known_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    picture(1).save(tmp_path / "photo", kind)
    (tmp_path / "README").write_text("BMore than enough text to look like nothing")
    items, _, left_out = read(open_source(str(tmp_path)))
    assert items == ["photo"] and left_out == {"without an ending": 1}
    assert read(open_source(str(tmp_path / "photo")))[0] == [(tmp_path / "photo").as_posix()]


def test_what_is_left_out_is_told_with_the_remedy() -> None:
    said = formats.describe_left_out({".heic": 1200, ".txt": 3, ".zip": 1, ".nef": 2})
    assert said.startswith("1,200 .heic (pip install 'cir-infer[heic]'") and "3 .txt" in said
    assert "unpack" in said and "raw" in said
    assert "more kinds" in formats.describe_left_out({f".{n}": 1 for n in range(30)})


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    from cir_infer.inputs.images import load_image

    heif.register_heif_opener()
    picture(1, (48, 64)).save(tmp_path / "a.HEIC", "HEIF")
    (tmp_path / "misnamed.jpg").write_bytes((tmp_path / "a.HEIC").read_bytes())
    items, _, _ = read(open_source(str(tmp_path), formats.image_endings()))
    assert items == ["a.HEIC", "misnamed.jpg"]
    assert load_image(tmp_path / "misnamed.jpg").size == (64, 48)


def test_folders_deeper_than_paths_reach_cost_themselves(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", 2)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("a", dir_fd=here)
        deeper = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    try:
        items, broken, _ = read(open_source(str(folder)))
        assert items == ["0.png", "sub/1.png"]
        assert len(broken) == 1 and "name too long" in next(iter(broken.values())).lower()
        assert read(open_source(f"{folder}/**/*.png"))[0] == items
    finally:  # what tidies up behind tests is recursive, and stops at so deep a folder
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_names_that_are_not_utf8_cost_themselves_and_say_so(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(odd).mkdir()
    Path(odd, "a.png").write_bytes(png(1))
    for item in open_source(str(tmp_path)).items():
        assert isinstance(item, Item)
        broken = unfit(item)
        assert broken is not None and "UTF-8" in broken.reason and "rename" in broken.reason
        assert "caf\\xe9" in broken.reason


@pytest.mark.skipif(sys.platform != "linux", reason="the locale decides how Python reads names")
@pytest.mark.parametrize(
    ("name", "told"), [(b"caf\xc3\xa9.png", "PYTHONUTF8"), (b"caf\xe9.png", "not UTF-8")]
)
def test_a_name_that_only_this_process_cannot_read_is_told_so(tmp_path: Path, name: bytes, told: str) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(png(1))
    code = (
        "import sys; from cir_infer.indexing.items import unfit; "
        "from cir_infer.indexing.sources import open_source; "
        "[print(unfit(item).reason) for item in open_source(sys.argv[1]).items()]"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8:backslashreplace"},
        capture_output=True,
        text=True,
    )
    assert told in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("f/*.png", ["0.png", "2.png"]),
        ("f/**/*.png", ["0.png", "2.png", "sub/1.png", "sub/3.png"]),
        ("f/{0,2}.png", ["0.png", "2.png"]),
        ("f/{sub,none}/*.{png,jpg}", ["sub/1.png", "sub/3.png"]),
        ("f/[02].png", ["0.png", "2.png"]),
        ("f/?ub/[!1].png", ["sub/3.png"]),
        ("f/**", ["0.png", "2.png", "sub/1.png", "sub/3.png"]),
        ("*/sub/*", ["f/sub/1.png", "f/sub/3.png"]),
        ("f/*", ["0.png", "2.png"]),
    ],
)
def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, found: list[str]) -> None:
    folder = folder_of(tmp_path / "f", 4)
    (folder / "readme.txt").touch()
    monkeypatch.chdir(tmp_path)
    source = open_source(pattern)
    assert read(source)[0] == found and source.count() == len(found)


@pytest.mark.parametrize("name", ["Holiday [2020]", "a{b,c}", "what?", "st*r"])
def test_signs_of_patterns_in_names_of_folders_are_those_folders(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path / name, 2)
    assert read(open_source(f"{tmp_path}/{name}/*.png"))[0] == ["0.png"]
    assert read(open_source(f"{tmp_path}/{name}/**/*.png"))[0] == ["0.png", "sub/1.png"]
    assert read(open_source(f"{tmp_path}/{name}"))[0] == ["0.png", "sub/1.png"]


def test_a_pattern_goes_through_named_links_and_counts_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", 2)
    (folder / "album").symlink_to(folder / "sub")
    assert read(open_source(f"{folder}/alb*/*.png"))[0] == ["album/1.png"]
    items, _, left_out = read(open_source(f"{folder}/**/*.png"))
    assert items == ["0.png", "sub/1.png"] and left_out["links to folders"] == 1


def test_a_pattern_below_nothing_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        list(open_source(f"{tmp_path}/nowhere/*.png").items())
    with pytest.raises(UsageError, match="braces"):
        open_source("f/" + "{a,b}" * 12)


def test_files_that_are_no_images_are_counted_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0.png").write_bytes(png(0))
    for name in ("readme.txt", "c.heic"):
        Path(name).touch()
    (source,) = open_sources(["0.png", "readme.txt", "c.heic"])
    assert read(source) == (["0.png"], {}, {".txt": 1, ".heic": 1})
    with pytest.raises(UsageError, match=r"cir-infer\[heic\]"):
        open_sources(["c.heic"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.zip", "unpack"), ("a.tar.gz", "plain .tar"), ("a.json", ".jsonl"), ("a.doc", "a folder")],
)
def test_what_is_no_source_says_what_to_do(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=remedy):
        open_source(str(tmp_path / name))


def test_a_name_before_a_source_stands_before_its_ids(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", 2)
    (folder / "bad.png").symlink_to("nowhere")
    for source in (open_source(f"anna={folder}"), open_sources([str(folder)], prefix="anna")[0]):
        items, broken, _ = read(source)
        assert items == ["anna/0.png", "anna/sub/1.png"] and list(broken) == ["anna/bad.png"]
        territory = source.territory
        assert territory is not None
        assert territory.owns("anna/0.png", f"{folder}/0.png")
        assert not territory.owns("0.png", f"{folder}/0.png")
    assert read(open_sources([f"own={folder}"], prefix="anna")[0])[0][0] == "own/0.png"
    folder_of(tmp_path / "a=b", 1)
    assert read(open_source(f"{tmp_path}/a=b"))[0] == ["0.png"]


def test_one_folder_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "f", 2)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    sources = {
        str(item.location)
        for spelled in ("f", "./f/", "link", "f/../f", str(folder), "f/sub/..")
        for item in open_source(spelled).items()
        if isinstance(item, Item)
    }
    assert sources == {f"{folder}/0.png", f"{folder}/sub/1.png"}


@pytest.mark.parametrize("name", ["x.tar", "x.csv", "x.jsonl", "x.parquet", "x.png", "x"])
def test_a_pipe_is_never_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    source = open_source(str(tmp_path / name))
    try:
        (entry,) = source.items()
    except DatasetError as error:
        assert "not a regular file" in str(error)
    else:
        assert isinstance(entry, Item)
        with pytest.raises(ImageError, match="not a regular file"):
            entry.location.read()
    for source in (
        TarSource(str(tmp_path / name), formats.IMAGE_ENDINGS),
        ManifestSource((tmp_path / name).with_suffix(".csv")),
        ManifestSource((tmp_path / name).with_suffix(".parquet")),
    ):
        source.count()
        with pytest.raises(DatasetError):
            list(source.items())


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.png", "**/a*/**/*.png", "*/**/a*/**"])
def test_links_in_circles_do_not_trap_a_pattern(tmp_path: Path, pattern: str) -> None:
    for name in ("a1.png", "a2", "b/a3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(png(1))
        for target in ("a1.png", "a2", "b"):
            (tmp_path / name / f"a-{target}").symlink_to(tmp_path / target)
    items, broken, _ = read(open_source(f"{tmp_path}/{pattern}"))
    assert broken == {} and 0 < len(items) < 100
