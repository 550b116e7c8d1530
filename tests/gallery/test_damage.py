"""Damaged and forged galleries are noticed: what matters for reading at once, the rest by verify."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from tests.gallery import flips
from tests.gallery.support import filled, vectors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    gallery = filled(tmp_path / "g", 10)
    gallery.add_vectors(ids=["x", "y"], vectors=vectors(2))
    gallery.remove(["i3"])
    gallery.close()
    return tmp_path / "g"


def segment(path: Path, number: int = 1) -> Path:
    return path / "rows" / f"{number:010d}.safetensors"


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path / "catalogue.sqlite")
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def cut(path: Path) -> None:
    os.truncate(segment(path), segment(path).stat().st_size - 1)


def lose(path: Path) -> None:
    segment(path).unlink()


def link(path: Path) -> None:
    segment(path).rename(path / "elsewhere")
    segment(path).symlink_to(path / "elsewhere")


def pipe(path: Path) -> None:
    segment(path).unlink()
    os.mkfifo(segment(path))


def swap(path: Path) -> None:
    shutil.copy(segment(path, 2), segment(path, 1))


def absurd_header(path: Path) -> None:
    data = segment(path).read_bytes()
    segment(path).write_bytes((1 << 60).to_bytes(8, "little") + data[8:])


def empty_catalogue(path: Path) -> None:
    (path / "catalogue.sqlite").write_bytes(b"")


def no_database(path: Path) -> None:
    (path / "catalogue.sqlite").write_bytes(b"text" * 5000)


def linked_catalogue(path: Path) -> None:
    (path / "catalogue.sqlite").rename(path / "elsewhere")
    (path / "catalogue.sqlite").symlink_to(path / "elsewhere")


def trigger(path: Path) -> None:
    edit(path, "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END")


def view(path: Path) -> None:
    edit(path, "DROP TABLE garbage", "CREATE VIEW garbage AS SELECT 1 AS generation, x'' AS keys")


def impossible_segment(path: Path) -> None:
    edit(path, "UPDATE segments SET rows = 1 << 61, last_key = 1 << 61 WHERE number = 1")


def impossible_width(path: Path) -> None:
    edit(path, "UPDATE encodings SET dimension = 1 << 40")


@pytest.mark.parametrize(
    "damage",
    [
        cut, lose, link, pipe, swap, absurd_header, empty_catalogue, no_database, linked_catalogue,
        trigger, view, impossible_segment, impossible_width,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_when_opening(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    with pytest.raises(GalleryError, match=r"(copy|create one|check the path)"):
        Gallery.open(path)


def flip(path: Path) -> None:
    data = bytearray(segment(path).read_bytes())
    data[-1] ^= 1
    segment(path).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "contents were altered"),
        (lambda path: edit(path, "UPDATE items SET metadata = '{\"number\": 77}' WHERE id = 'i5'"), "filter"),
        (lambda path: edit(path, "UPDATE items SET metadata = '{' WHERE id = 'i5'"), "metadata is damaged"),
        (lambda path: edit(path, "DELETE FROM attributes WHERE key = 5"), "filter"),
        (lambda path: edit(path, "UPDATE items SET id = 'i4' WHERE id = 'i5'"), "'i4' is there twice"),
        (lambda path: edit(path, "DELETE FROM items WHERE id = 'i5'"), "1 rows have no item"),
    ],
)
def test_verify_finds_what_does_not_fit(path: Path, damage: Callable[[Path], None], message: str) -> None:
    with Gallery.open(path) as gallery:
        assert gallery.verify().problems == []
    damage(path)
    with Gallery.open(path) as gallery:
        report = gallery.verify()
        assert not report.ok and any(message in problem for problem in report.problems), report.problems


def test_a_schema_that_is_no_text_is_damage(path: Path) -> None:
    file = path / "catalogue.sqlite"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"CREATE TABLE tombstones", b"CREATE TABLE tombst\xffnes", 1))
    assert file.read_bytes() != data
    with pytest.raises(GalleryError, match="restore"):
        Gallery.open(path)


@pytest.mark.parametrize("column", ["id", "source"])
def test_bytes_where_a_text_belongs_are_damage(path: Path, column: str) -> None:
    edit(path, f"UPDATE items SET {column} = x'ff00' WHERE id = 'i5'")
    with Gallery.open(path) as gallery:
        snapshot = gallery.snapshot()
        with pytest.raises(GalleryError, match=f"a stored {column} is damaged"):
            snapshot.items(snapshot.live_rows())
        assert any("not a text" in problem for problem in gallery.verify().problems)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE items SET source = '/elsewhere' WHERE id = 'i5'",
        "UPDATE items SET stamp = 'older' WHERE id = 'i5'",
        "UPDATE items SET id = 'I5' WHERE id = 'i5'",
        "UPDATE items SET metadata = NULL WHERE id = 'x'; UPDATE items SET source = NULL; "
        "UPDATE items SET source = '' WHERE id = 'x'",
        "UPDATE fields SET name = 'other' WHERE name = 'parity'",
        "INSERT INTO fields SELECT 99, 'new', checksum FROM fields WHERE name = 'parity'",
        "UPDATE attributes SET value = 'even' WHERE value = 'odd' AND key = 2",
        "UPDATE tombstones SET bits = x'02'",
        "DELETE FROM tombstones",
        "UPDATE encodings SET fingerprint = 'another'",
        "UPDATE segments SET first_key = 2, last_key = 11 WHERE number = 1",
        "DELETE FROM segments WHERE number = 2",
        "INSERT INTO garbage VALUES (1, x'0100000000000000', 0)",
        "UPDATE header SET value = 'another' WHERE name = 'uuid'",
        "UPDATE header SET value = value + 1 WHERE name = 'next_key'",
        "UPDATE header SET value = value + 1 WHERE name = 'items_total'",
        "DELETE FROM header WHERE name = 'origin'",
    ],
)
def test_no_row_of_the_catalogue_can_be_altered_unnoticed(path: Path, statement: str) -> None:
    edit(path, *statement.split(";"))
    try:
        with Gallery.open(path) as gallery:
            problems = gallery.verify().problems
    except GalleryError as error:
        problems = [str(error)]
    assert any("catalogue" in problem or "filter" in problem for problem in problems), problems


def test_flipped_bits_are_found_or_harmless(tmp_path: Path) -> None:
    report = flips.run(tmp_path, 75, seed=3)
    assert report["violations"] == []
    assert report["outcomes"].keys() == {"found when opening", "found by verify", "harmless"}


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_found_or_harmless(tmp_path: Path) -> None:
    assert flips.run(tmp_path, 10_000, seed=0)["violations"] == []
