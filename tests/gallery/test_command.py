"""`cir-gallery`, as a shell sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer.commands.gallery import main
from cir_infer.gallery import Gallery
from cir_infer.indexing import descriptions
from cir_infer.shards import ShardedGallery
from tests.gallery.support import as_version_1, filled, vectors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its exit code and what it wrote to stdout and stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with filled(tmp_path / "g", 10) as gallery:
        gallery.add_vectors(
            ids=["bad\x1b[31m\nname"], vectors=vectors(1), metadata=[{"evil\x07": "\x1b[2J", "parity": True}]
        )
    return tmp_path / "g"


def test_fields(run: Run, path: Path) -> None:
    code, out, err = run("fields", path)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "boolean, text" in lines["parity"] and "0 to 9" in lines["number"]
    assert "\x1b" not in out and "\x07" not in out and r"evil\x07" in out
    known = json.loads(run("fields", path, "--json")[1])
    assert known["items"] == 11
    number = next(field for field in known["fields"] if field["name"] == "number")
    assert number == {
        "name": "number", "items": 10, "types": {"integer": 10}, "least": 0, "greatest": 9, "distinct": 10,
        "examples": [0, 1, 2, 3, 4],
    }  # fmt: skip
    with Gallery.create(path.with_name("empty"), dimension=3):
        pass
    assert run("fields", path.with_name("empty")) == (0, "no metadata\n", "")


def test_duplicates(run: Run, path: Path) -> None:
    code, out, _ = run("duplicates", path)
    assert code == 0 and out.splitlines()[0].startswith("2 items, cosine 1.00000: i0, bad")
    assert "\x1b" not in out and r"bad\x1b[31m\nname" in out
    assert out.splitlines()[-1] == "1 group; 1 of 11 items repeats another"
    known = json.loads(run("--json", "duplicates", path, "--threshold", "0.9")[1])
    assert known["groups"] == [{"ids": ["i0", "bad\x1b[31m\nname"], "similarity": 1.0}]
    code, _, err = run("duplicates", path, "--threshold", "7")
    assert code == 2 and "threshold is 7.0" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("fields",),
        ("verify",),
        ("backup", "BACKUP"),
        ("export", "rows.safetensors"),
        ("remove", "i1"),
    ],
)
def test_large_numbers_are_written_alike(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = [f"i{number}" for number in range(1235)]
    with Gallery.from_arrays(
        "g", ids=ids, vectors=vectors(1235), metadata=[{"of": one} for one in ids]
    ) as gallery:
        gallery.remove(["i0"])
    action, *rest = arguments
    code, out, _ = run(action, "g", *rest)
    assert code == 0 and re.search(r"\b1,23[345]\b", out)
    assert not re.search(r"\b123[345]\b", out)


def test_many_rows_of_no_item_are_told_with_what_to_do(run: Run, tmp_path: Path) -> None:
    ids = [f"i{number}" for number in range(4000)]
    with Gallery.from_arrays(tmp_path / "g", ids=ids, vectors=vectors(4000)) as gallery:
        gallery.remove(ids[:999])  # too few bytes for the change to drop them
    code, out, err = run("info", tmp_path / "g")
    assert (code, err) == (0, "") and re.search(r"^buried +999$", out, re.MULTILINE)
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.remove(ids[999:1000])
    code, out, err = run("info", tmp_path / "g", "--json")
    assert code == 0 and json.loads(out)["buried"] == 1000
    assert "1,000 of 4,000 rows are of items" in err and "cir-gallery compact" in err
    run("compact", tmp_path / "g")
    assert run("info", tmp_path / "g")[2] == ""


def test_removing_what_is_not_there(run: Run, path: Path) -> None:
    code, _, err = run("remove", path, "i0", "no\x1bne")
    assert code == 1 and "--skip-missing" in err and "\x1b" not in err
    assert run("remove", path, "i0", "none", "--skip-missing") == (0, "1 removed, 10 left\n", "")


def test_metadata_from_a_table(run: Run, path: Path, tmp_path: Path) -> None:
    table = tmp_path / "prices.csv"
    table.write_text("id;price;parity\ni1;3.5;\ni2;4;none\n")
    assert run("metadata", path, table, "--merge") == (0, "2 of 2 items changed\n", "")
    known = json.loads(run("metadata", path, table, "--merge", "--json")[1])
    assert known == {"named": 2, "changed": 0, "missing": 0, "items": 11}
    with Gallery.open(path, read_only=True) as gallery:
        snapshot = gallery.snapshot()
        rows = [snapshot.row(item) or 0 for item in ("i1", "i2")]
        assert snapshot.metadata(rows) == [
            {"number": 1, "parity": "odd", "price": 3.5},
            {"number": 2, "parity": "none", "price": 4},
        ]
    # The catalogue that cir-index read serves as well: its column of images is no field, null is none.
    table = tmp_path / "catalogue.jsonl"
    table.write_text(
        '{"image": "i3", "kind": "hat", "price": null}\n{"image": "x.png", "id": "i4", "a": 1}\n'
    )
    assert run("metadata", path, table)[1] == "2 of 2 items changed\n"
    with Gallery.open(path, read_only=True) as gallery:
        snapshot = gallery.snapshot()
        rows = [snapshot.row(item) or 0 for item in ("i3", "i4")]
        assert snapshot.metadata(rows) == [{"kind": "hat"}, {"a": 1}]
    table.write_text('{"id": "i3", "kind": null}\n{"id": "none"}\n')
    assert run("metadata", path, table, "--merge", "--skip-missing") == (
        0, "1 of 2 items changed, 1 not in the gallery\n", "",
    )  # fmt: skip
    assert json.loads(run("info", path, "--where", "kind is not null", "--json")[1])["matching"] == 0


def test_a_long_table_is_looked_at_before_anything_changes(
    run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, rows = tmp_path / "a.jsonl", [json.dumps({"id": f"i{n}", "a": "x" * 20}) for n in range(9)]
    with Gallery.open(path, read_only=True) as gallery:
        for name, most, commits in (("_TOGETHER", 4, 3), ("_CHARACTERS", 60, 5)):
            monkeypatch.setattr(descriptions, name, most)
            generation = gallery.snapshot().generation
            table.write_text("\n".join(['{"id": "no1"}', *rows, '{"id": "no2"}']))
            code, _, err = run("metadata", path, table)
            assert code == 1 and "'no1'" in err and "(2 of its 11 are missing); nothing was changed" in err
            assert gallery.snapshot().generation == generation
            table.write_text("\n".join(rows).replace("x", name[1]))
            assert run("metadata", path, table) == (0, "9 of 9 items changed\n", "")
            snapshot = gallery.snapshot()
            # A segment of which nothing is left goes with a commit of its own.
            assert generation + commits <= snapshot.generation <= generation + 2 * commits
            assert snapshot.matching({"a": name[1] * 20}) == 9
            monkeypatch.undo()


def test_metadata_of_shards(run: Run, path: Path, tmp_path: Path) -> None:
    assert run("shard", path, tmp_path / "s", "--into", "3")[0] == 0
    table = tmp_path / "a.jsonl"
    table.write_text(
        "\n".join(json.dumps({"id": f"i{n}", "price": n}) for n in range(10)) + '\n{"id": "none"}'
    )
    code, _, err = run("metadata", tmp_path / "s", table, "--merge")
    assert code == 1 and "holds no id 'none', which " in err and "(1 of its 11 are missing)" in err
    with ShardedGallery(tmp_path / "s", read_only=True) as shards:
        assert [shard.snapshot().matching("price is not null") for shard in shards.shards] == [0, 0, 0]
        known = json.loads(run("metadata", tmp_path / "s", table, "--merge", "--skip-missing", "--json")[1])
        assert known == {"named": 11, "changed": 10, "missing": 1, "items": 11}
        assert sum(shard.snapshot().matching("price is not null") for shard in shards.shards) == 10
        assert [shards.of(f"i{n}").snapshot().matching(f"price = {n}") for n in range(10)] == [1] * 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"id": "i1", "a": 1}\n{"id": "no\\u001bne"}', "--skip-missing"),
        ("a.jsonl", '{"id": "i1", "a": 1}\n{"id": "i1", "a": 2}', "line 2: id 'i1' came before; name each"),
        ("a.jsonl", '{"id": "i1", "a": 1}\n[]', "line 2: expected a JSON object"),
        ("a.jsonl", '{"id": "i1", "a": 1}\n{"id": 1.5}', "line 2: its id is 1.5; expected text or a whole"),
        (
            "a.jsonl",
            '{"id": "i1", "a": 1}\n{"id": "i2", "a": {"b": 1}, "a.b": 2}',
            "field 'a.b' is there twice",
        ),
        ("a.csv", "name,price\ni1,3\n", "no column names the items; found 'name', 'price', expected id"),
        ("a.csv", "id,price\ni1,3\ni2\n", "row 3: has 1 cells, the header 2"),
        ("a.txt", "id,price\ni1,3\n", "is no table; expected a file that ends in .csv"),
        ("a.parquet", "id,price\ni1,3\n", "a.parquet: "),
    ],
)
def test_a_wrong_table_changes_nothing(
    run: Run, path: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    with Gallery.open(path, read_only=True) as gallery:
        generation = gallery.snapshot().generation
        (tmp_path / name).write_text(text)
        code, out, err = run("metadata", path, tmp_path / name)
        assert (code, out) == (1, "") and message in err and "\x1b" not in err and err.count("\n") == 1
        assert gallery.snapshot().generation == generation


def test_an_interrupted_scan_ends_with_130(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cir_infer.gallery.inspection import duplicates

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(duplicates, "_join", interrupt)
    assert run("duplicates", path)[0] == 130
    monkeypatch.undo()
    assert run("duplicates", path)[0] == 0


def test_backup(run: Run, path: Path, tmp_path: Path) -> None:
    code, out, err = run("backup", path, tmp_path / "b")
    assert (code, err) == (0, "") and out.startswith("11 items of commit 3 in ") and "verified" in out
    known = json.loads(run("backup", path, tmp_path / "b", "--json", "--no-verify")[1])
    assert (known["kept"], known["linked"], known["verified"]) == (2, 0, False)
    assert run("backup", path, tmp_path / "c", "--copy")[0] == 0
    code, _, err = run("backup", path, path / "inside")
    assert code == 1 and "inside the gallery" in err
    assert run("verify", tmp_path / "b")[0] == 0


def test_upgrade(run: Run, path: Path) -> None:
    as_version_1(path)
    assert json.loads(run("info", path, "--json")[1])["format"] == 1
    assert run("upgrade", path) == (0, "format 1 became 2\n", "")
    assert run("upgrade", path) == (0, "format 2 already\n", "")
    known = json.loads(run("info", path, "--json")[1])
    assert known["format"] == 2 and len(known["uuid"]) == 36
    assert run("verify", path)[0] == 0


def test_a_damaged_gallery_is_not_upgraded(run: Run, path: Path) -> None:
    as_version_1(path)
    rows = path / "rows" / "0000000001.safetensors"
    data = bytearray(rows.read_bytes())
    data[-1] ^= 1
    rows.write_bytes(data)
    code, _, err = run("upgrade", path)
    assert code == 1 and "is damaged, so it is not upgraded" in err
    assert run("upgrade", path, "--no-verify")[0] == 0


def test_import_and_export(run: Run, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.safetensors"
    assert run("export", path, target)[0] == 0
    code, _, err = run("export", path, target)
    assert code == 1 and "already exists" in err
    assert run("export", path, target, "--overwrite")[0] == 0
    assert run("import", tmp_path / "again", target)[0] == 0
    (tmp_path / "x" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "x" / "img_emb" / "img_emb_0.npy", vectors(3))
    code, _, err = run("import", tmp_path / "foreign", tmp_path / "x")
    assert code == 1 and "--unknown-fingerprint" in err
    assert run("import", tmp_path / "foreign", tmp_path / "x", "--unknown-fingerprint")[0] == 0


@pytest.mark.parametrize(
    "action",
    [
        "info",
        "fields",
        "duplicates",
        "verify",
        "compact",
        "backup",
        "upgrade",
        "remove",
        "metadata",
        "export",
        "import",
    ],
)
def test_every_action_has_an_example(run: Run, action: str) -> None:
    code, out, _ = run(action, "--help")
    assert code == 0 and f"example:\n  cir-gallery {action} " in out
    assert run(action)[0] == 2
