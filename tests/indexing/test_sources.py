from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import pytest

from cir_infer.errors import DatasetError, ImageError, UsageError
from cir_infer.indexing.items import Broken, Item, Location
from cir_infer.indexing.sources import open_source, open_sources
from tests.indexing.support import folder_of, png, shard_of


def read(path: Path | str) -> tuple[dict[str, Item], list[Broken]]:
    entries = list(open_source(str(path)).items())
    items = {entry.id: entry for entry in entries if isinstance(entry, Item)}
    return items, [entry for entry in entries if isinstance(entry, Broken)]


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", 4)
    (folder / "readme.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(png(0))
    source = open_source(str(folder))
    assert [item.id for item in source.items()] == ["0.png", "2.png", "sub/1.png", "sub/3.png"]
    assert source.count() == 4
    items, _ = read(folder)
    assert items["sub/1.png"].location.read() == png(1)


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", 2)
    (folder / "link.png").symlink_to(folder / "0.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "sub" / "cycle").symlink_to(folder, target_is_directory=True)
    items, broken = read(folder)
    assert sorted(items) == ["0.png", "link.png", "sub/1.png"]
    assert [entry.id for entry in broken] == ["dangling.png"] and "not there" in broken[0].reason


def test_a_pattern_gives_what_matches(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", 4)
    items, _ = read(f"{tmp_path}/f/**/*.png")
    assert sorted(items) == ["0.png", "2.png", "sub/1.png", "sub/3.png"]
    assert sorted(read(f"{tmp_path}/f/[0-1].png")[0]) == ["0.png"]


def test_images_named_one_by_one_are_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "f", 2)
    monkeypatch.chdir(tmp_path)
    sources = open_sources(["f/0.png", "f/sub", "f/sub/1.png"])
    assert [[item.id for item in source.items()] for source in sources] == [
        ["1.png"],
        ["f/0.png", "f/sub/1.png"],
    ]


def test_csv_rows_name_images_and_metadata(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", 2)
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image_path", "price", "size", "code", "new", "note"])
        writer.writerow(["7", "f/0.png", "3.50", "12", "007", "True", ""])
        writer.writerow(["b", str(tmp_path / "f/sub/1.png"), "-1e3", "large", "1.5.2", "no", 'say "hi", now'])
        writer.writerow(["c", "f/gone.png", "1", "1", "1", "1", "1"])
        writer.writerow(["short", "f/0.png"])
        writer.writerow(["d", "", "1", "1", "1", "1", "1"])
    items, broken = read(tmp_path / "m.csv")
    assert items["7"].metadata == {"price": 3.5, "size": 12, "code": "007", "new": True}
    assert items["b"].metadata == {
        "price": "-1e3",
        "size": "large",
        "code": "1.5.2",
        "new": "no",
        "note": 'say "hi", now',
    }
    assert items["b"].location.read() == png(1)
    assert [entry.id.rpartition("/")[2] for entry in broken] == ["c", "m.csv row 5", "d"]
    assert (
        "gone.png" in broken[0].reason
        and "cells" in broken[1].reason
        and "names no image" in broken[2].reason
    )


def test_jsonl_rows_name_images_and_metadata(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", 2)
    rows = [
        {"image": "f/0.png", "tags": ["a"], "none": None},
        {"id": 5, "file": "f/sub/1.png"},
        {"image": 3},
        [1],
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n{broken\n")
    items, broken = read(tmp_path / "m.jsonl")
    assert items["f/0.png"].metadata == {"tags": ["a"]} and items["5"].metadata is None
    assert [entry.reason.partition(": ")[2][:12] for entry in broken] == [
        "names no ima",
        "expected a J",
        "not JSON tha",
    ]


def test_parquet_rows_name_images_and_metadata(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder_of(tmp_path / "f", 2)
    table = pyarrow.table({"id": ["a", "b"], "path": ["f/0.png", "f/sub/1.png"], "price": [1.5, None]})
    parquet.write_table(table, tmp_path / "m.parquet")
    items, broken = read(tmp_path / "m.parquet")
    assert items["a"].metadata == {"price": 1.5} and items["b"].metadata is None and broken == []
    assert open_source(str(tmp_path / "m.parquet")).count() == 2


def test_a_shard_gives_its_images_with_metadata(tmp_path: Path) -> None:
    items, broken = read(shard_of(tmp_path / "s.tar", 3))
    assert sorted(items) == ["s/0000.png", "s/0001.png", "s/0002.png"] and broken == []
    item = items["s/0002.png"]
    assert item.metadata == {"number": 2, "caption": "caption 2"} and item.location.read() == png(2)
    assert Location.parse(str(item.location)) == item.location


def test_members_that_point_elsewhere_have_no_effect(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = str(tmp_path / "secret.png")
            archive.addfile(member)
        archive.add(tmp_path / "secret.png", "../../escape.png")
    before = sorted(tmp_path.rglob("*"))
    items, _ = read(tmp_path / "s.tar")
    assert sorted(items) == ["s/../../escape.png"] and items["s/../../escape.png"].location.read() == png(9)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shard_that_ends_early_keeps_what_came_before(tmp_path: Path) -> None:
    data = shard_of(tmp_path / "s.tar", 10).read_bytes()
    (tmp_path / "s.tar").write_bytes(data[: len(data) // 2 + 100])
    found = []
    with pytest.raises(DatasetError, match=r"s\.tar"):
        for item in open_source(str(tmp_path / "s.tar")).items():
            found.append(item)
    assert len(found) >= 3


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.tar", b"not a tar file at all"),
        ("x.csv", b"a,b\n1,2\n"),
        ("x.csv", b"image\n\xff\xfe\n"),
        ("x.csv", b"image\n\x00\n" + b'"' * 100),
        ("x.jsonl", b"\xff\xff"),
        ("x.parquet", b"PAR1 nonsense PAR1"),
    ],
)
def test_a_damaged_manifest_is_a_dataset_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    try:
        entries = list(open_source(str(tmp_path / name)).items())
    except DatasetError as error:
        assert name in str(error)
    else:
        assert all(isinstance(entry, Broken) for entry in entries)


def test_what_is_no_source_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.doc").write_text("hello")
    for argument in (tmp_path / "x.doc", tmp_path / "nowhere", "a\x00b"):
        with pytest.raises(UsageError):
            open_source(str(argument))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, tmp_path / "nowhere.png", Path("/dev/zero")):
        with pytest.raises(ImageError):
            Location(str(path)).read()
    (tmp_path / "short.bin").write_bytes(b"abc")
    with pytest.raises(ImageError, match="cut short"):
        Location(str(tmp_path / "short.bin"), 1, 10).read()


def test_a_file_with_a_strange_name_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "a#1+2"
    path.write_bytes(b"whole")
    assert Location.parse(str(path)) == Location(str(path)) and Location.parse(str(path)).read() == b"whole"
    assert Location.parse("x.tar#10+20") == Location("x.tar", 10, 20)
