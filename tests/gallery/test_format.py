"""Format versions: what is read, what is upgraded, what is refused; and commits that a damaged log loses."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from tests.gallery.support import as_version_1, filled, vectors


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A gallery of format 1 with some history."""
    path = tmp_path / "old.gallery"
    with filled(path, 10) as gallery:
        gallery.add_vectors(ids=["x", "i2"], vectors=vectors(2, 1), existing="replace", sources=["s", None])
        gallery.remove(["i3"])
    as_version_1(path)
    return path


def files(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file() and file.parent.name != "readers"
    }


def contents(gallery: Gallery) -> list[Any]:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    return [snapshot.items(rows), snapshot.rows.take(rows).tolist(), snapshot.matching("parity = odd")]


def version(path: Path) -> int:
    connection = sqlite3.connect(path / "catalogue.sqlite")
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def test_reading_format_1_leaves_it_as_it_is(old: Path) -> None:
    before = files(old)
    with Gallery.open(old) as gallery:
        assert len(gallery) == 10 and gallery.verify().problems == []
        assert gallery.snapshot().matching("parity = odd") == 4
    assert files(old) == before


def test_the_first_change_upgrades_format_1(old: Path) -> None:
    with Gallery.open(old, read_only=True) as reader, Gallery.open(old) as writer:
        before = contents(reader)
        held = reader.snapshot()
        with pytest.raises(GalleryError, match="holds no id"):
            writer.remove(["nobody"])
        assert version(old) == 1, "what changes nothing upgrades nothing"
        writer.add_vectors(ids=["late"], vectors=vectors(1))
        assert version(old) == 2
        assert held.ids(held.live_rows())[0] == "i0"
        assert reader.verify().ok and "late" in reader
        writer.remove(["late"])
        assert contents(reader) == before == contents(writer)
        writer.compact()
        assert contents(writer) == before
        writer.add_vectors(ids=["later"], vectors=vectors(1))
        assert writer.verify().problems == []


def test_a_failed_change_leaves_format_1(old: Path) -> None:
    with Gallery.open(old) as gallery:
        connection = sqlite3.connect(old / "catalogue.sqlite", isolation_level=None)
        connection.execute("UPDATE header SET value = 'many' WHERE name = 'next_segment'")
        connection.close()
        before = files(old)["catalogue.sqlite"]
        with pytest.raises(GalleryError):
            gallery.add_vectors(ids=["late"], vectors=vectors(1))
    assert version(old) == 1 and before


def test_a_newer_format_says_so(old: Path) -> None:
    connection = sqlite3.connect(old / "catalogue.sqlite")
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(GalleryError, match=r"format 4, a newer version.*upgrade cir-infer"):
        Gallery.open(old)


def test_commits_that_a_damaged_log_takes_back_are_noticed(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 10) as gallery:
        for number in range(5):
            gallery.add_vectors(ids=[f"late{number}"], vectors=vectors(1, number))
        shutil.copytree(tmp_path / "g", tmp_path / "killed")  # as a kill leaves it: with its log
    log = tmp_path / "killed" / "catalogue.sqlite-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 4
    log.write_bytes(data)
    with pytest.raises(GalleryError, match=r"commit \d was acknowledged.*remove its file committed"):
        Gallery.open(tmp_path / "killed")
    (tmp_path / "killed" / "committed").unlink()
    with Gallery.open(tmp_path / "killed") as gallery:
        assert "i9" in gallery and "late4" not in gallery


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"x 99 0\n", b"committed" * 30])
def test_a_torn_note_of_the_last_commit_is_no_evidence(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path / "g", 3).close()
    (tmp_path / "g" / "committed").write_bytes(content)
    with Gallery.open(tmp_path / "g") as gallery:
        assert len(gallery) == 3 and gallery.verify().ok


def test_a_catalogue_that_another_tool_copied_gets_its_log_again(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    catalogue = tmp_path / "g" / "catalogue.sqlite"
    with closing(sqlite3.connect(catalogue)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    with Gallery.open(tmp_path / "g", read_only=True) as reader, Gallery.open(tmp_path / "g") as gallery:
        gallery.add_vectors(ids=["new"], vectors=vectors(1))
        assert "new" in reader.ids and gallery.verify().ok
        assert (tmp_path / "g" / "catalogue.sqlite-wal").exists()
