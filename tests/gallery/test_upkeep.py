"""A gallery that changes each day keeps its size by itself, whoever reads, and whatever fails on the way."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery, store
from cir_infer.gallery.changes import compaction, upkeep
from tests.gallery.support import DIM, filled, names, vectors

ROW = 2 * DIM
"""Bytes of a float16 row."""


@pytest.fixture(autouse=True)
def every_byte_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEAST", 0)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each file that is written has."""
    rows: list[int] = []
    original = store.Store.write_segment

    def counted(self: store.Store, *arguments: Any) -> Any:
        rows.append(arguments[-1])
        return original(self, *arguments)

    monkeypatch.setattr(store.Store, "write_segment", counted)
    return rows


def sizes(gallery: Gallery) -> tuple[int, int]:
    """How many rows and stored items a gallery has, those of no item included."""
    with gallery._store.catalogue.reading() as connection:
        items = connection.execute("SELECT count(*) FROM items").fetchone()[0]
    return gallery.snapshot().rows.count, items


def changed(gallery: Gallery, which: list[str], night: int) -> dict[str, bytes]:
    """Replace items by those of a night; what their rows are."""
    rows = vectors(len(which), night)
    data = [{"night": night}] * len(which)
    gallery.add_vectors(ids=which, vectors=rows, metadata=data, existing="replace")
    return {item: row.astype(np.float16).tobytes() for item, row in zip(which, rows, strict=True)}


def rows_of_all(gallery: Gallery) -> dict[str, bytes]:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    found = snapshot.rows.take(rows).astype(np.float16)
    return {item: row.tobytes() for item, row in zip(snapshot.ids(rows), found, strict=True)}


@pytest.mark.parametrize("step", [5, 40])
@pytest.mark.parametrize("largest", [compaction.LARGEST, 90 * ROW])
def test_a_tenth_changed_each_night_leaves_the_gallery_as_large_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[int], step: int, largest: int
) -> None:
    monkeypatch.setattr(compaction, "LARGEST", largest)
    monkeypatch.setattr(upkeep, "LARGEST", largest)
    count, nights = 400, 30
    gallery = filled(tmp_path / "g", count)
    expected = rows_of_all(gallery)
    rng = np.random.default_rng(0)
    most = 0
    for night in range(nights):
        for part in rng.permutation(count)[: count // 10].reshape(-1, step):
            expected |= changed(gallery, [f"i{n}" for n in part], night)
        most = max(most, *sizes(gallery))
    assert most <= 1.5 * count, "at no time are more than a third of the rows of no item"
    assert sum(written) <= count + (1 + upkeep.SPARSE + 2) * nights * count // 10, "and each row costs few"
    assert max(written) * ROW <= largest and gallery.snapshot().segment_count <= upkeep.MANY + 4
    assert rows_of_all(gallery) == expected and gallery.verify().ok
    assert len(list((gallery.path / "rows").iterdir())) == gallery.snapshot().segment_count


def test_removals_alone_give_the_room_back(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 100)
    for start in range(0, 90, 10):
        gallery.remove(names(100)[start : start + 10])
        rows, items = sizes(gallery)
        assert rows * 3 <= 4 * len(gallery) + 3 and items == rows
    assert gallery.ids == names(100)[90:] and gallery.verify().ok


def test_metadata_that_changes_each_night_does_not_grow_either(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 100)
    rng = np.random.default_rng(1)
    for night in range(20):
        which = [f"i{n}" for n in rng.permutation(100)[:10]]
        gallery.set_metadata(which, [{"price": night}] * 10, merge=True)
    assert max(sizes(gallery)) <= 150 and gallery.verify().ok
    assert gallery.snapshot().matching("price = 19") == 10


def test_few_buried_bytes_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g", 100)
    monkeypatch.setattr(upkeep, "LEAST", 50 * ROW)
    gallery.remove(names(49))
    assert sizes(gallery) == (100, 100)
    gallery.remove(["i50"])
    assert sizes(gallery) == (50, 50)


def test_a_reader_that_stays_holds_no_more_than_the_gallery_once_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = filled(tmp_path / "g", 200)
    with Gallery.open(gallery.path, read_only=True) as reader:
        held = reader.snapshot()
        before = held.rows.take(range(200)).tobytes()
        rng = np.random.default_rng(2)
        for night in range(40):
            changed(gallery, [f"i{n}" for n in rng.permutation(200)[:20]], night)
            on_disk = sum(file.stat().st_size for file in (gallery.path / "rows").iterdir())
        grown = sizes(gallery)[0]
        assert grown > 400, "what cannot go is not written again and again"
        assert on_disk < (2 * 200 + grown) * ROW + 100_000
        said = [text for text in caplog.messages if "older generations" in text]
        assert len(said) == 1 and held.rows.take(range(200)).tobytes() == before
    del held, reader
    for night in range(3):
        changed(gallery, [f"i{n}" for n in range(20)], night)
    assert max(sizes(gallery)) <= 300 and gallery.verify().ok


def test_a_file_too_large_for_a_commit_is_told_and_is_several_after_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = filled(tmp_path / "g", 200)
    for module in (compaction, upkeep):
        monkeypatch.setattr(module, "LARGEST", 60 * ROW)
    for number in range(60):
        gallery.remove([f"i{number}"])
    assert gallery.snapshot().rows.count == 200
    assert [text for text in caplog.messages if "200 rows" in text and "cir-gallery compact" in text] == [
        f"{gallery.path}: a file of 200 rows is too large to be written again by a commit, and one row in 4 "
        "of it or more is of no item; cir-gallery compact drops them"
    ]
    report = gallery.compact()
    assert (report.segments_before, report.segments_after, report.rows_dropped) == (1, 3, 60)
    gallery.remove(names(100)[60:80])
    assert gallery.snapshot().rows.count == 120 and gallery.ids == names(200)[80:]


def test_a_large_change_pays_for_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g", 200)
    for module in (compaction, upkeep):
        monkeypatch.setattr(module, "LARGEST", 60 * ROW)
    gallery.remove(names(60))
    assert gallery.snapshot().rows.count == 140 and gallery.snapshot().segment_count == 3


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_many_rows_at_once_are_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    whole = filled(tmp_path / "whole", 50, dtype=dtype)
    monkeypatch.setattr(compaction, "LARGEST", 20 * ROW)
    gallery = filled(tmp_path / "g", 50, dtype=dtype)
    assert gallery.snapshot().segment_count == (3 if dtype == "float16" else 2)
    assert rows_of_all(gallery) == rows_of_all(whole)
    gallery.set_metadata(names(50), [{"price": 1}] * 50)
    assert rows_of_all(gallery) == rows_of_all(whole) and gallery.verify().ok


def test_of_files_that_are_written_together_none_is_left_where_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "LARGEST", 20 * ROW)
    gallery = filled(tmp_path / "g", 10)
    original = store.write_tensors
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(store, "write_tensors", failing)
    with pytest.raises(GalleryError, match="space"):
        gallery.add_vectors(ids=names(60, "x"), vectors=vectors(60))
    assert len(list((gallery.path / "rows").iterdir())) == 1 and len(gallery) == 10
    gallery.add_vectors(ids=names(60, "x"), vectors=vectors(60))
    assert len(gallery) == 70 and gallery.verify().ok


def test_upkeep_that_fails_leaves_the_change_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = filled(tmp_path / "g", 40)
    original = store.write_tensors

    def failing(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_tensors", failing)
    with caplog.at_level(logging.WARNING):
        gallery.remove(names(20))
    assert "left for now" in caplog.text and gallery.ids == names(40)[20:]
    assert sizes(gallery) == (40, 40)
    monkeypatch.setattr(store, "write_tensors", original)
    gallery.remove(["i20"])
    assert sizes(gallery) == (19, 19) and gallery.verify().ok


def test_many_dropped_items_are_forgotten_by_several_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = filled(tmp_path / "g", 100)
    gallery.add_vectors(ids=names(4, "x"), vectors=vectors(4))
    # Nine are dropped with their rows, and a commit forgets four of them.
    original = store.Store.tidy
    monkeypatch.setattr(store.Store, "tidy", lambda self, items=4: original(self, items))
    gallery.remove(names(100))
    assert sizes(gallery)[0] == 4
    counts = [sizes(gallery)[1]]
    while counts[-1] > 4:
        assert gallery.verify().ok
        gallery.add_vectors(ids=["x0"], vectors=vectors(1, len(counts)), existing="replace")
        counts.append(sizes(gallery)[1])
        assert counts[-1] < counts[-2]
    assert counts[0] > 90 and len(counts) > 5
    gallery.remove(names(4, "x"))
    gallery.compact()
    assert sizes(gallery) == (0, 0)
