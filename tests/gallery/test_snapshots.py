from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from cir_infer.errors import CirError, GalleryError, UsageError
from cir_infer.gallery import Gallery, Snapshot
from cir_infer.gallery.catalogue.catalogue import Catalogue
from cir_infer.gallery.changes import compaction
from tests.gallery.support import filled, names, rows_of, vectors


def contents(snapshot: Snapshot) -> dict[str, tuple[bytes, dict]]:
    rows = snapshot.live_rows()
    stored = snapshot.rows.take(rows)
    return {
        item: (vector.tobytes(), data)
        for item, vector, data in zip(snapshot.ids(rows), stored, snapshot.metadata(rows), strict=True)
    }


def row_files(gallery: Gallery) -> list[str]:
    return sorted(path.name for path in (gallery.path / "rows").iterdir())


def test_a_snapshot_stays_the_same_through_every_change(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 20)
    snapshot = gallery.snapshot()
    before = contents(snapshot)
    expected = snapshot.matching("number < 10")
    gallery.remove(names(5))
    gallery.add_vectors(
        ids=["i7", "x"], vectors=vectors(2, 5), metadata=[{"number": 1}] * 2, existing="replace"
    )
    gallery.compact()
    gallery.remove(names(20)[10:])
    gallery.compact()
    assert contents(snapshot) == before
    assert snapshot.matching("number < 10") == expected and snapshot.matching("parity = odd") == 10
    assert snapshot.row("i7") == 7 and snapshot.row("x") is None and snapshot.row("i0") == 0
    assert set(gallery.ids) == {"i5", "i6", "i7", "i8", "i9", "x"}


def test_the_newest_snapshot_is_shared_until_there_is_a_newer_one(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    first = gallery.snapshot()
    assert gallery.snapshot() is first
    gallery.remove(["i1"])
    second = gallery.snapshot()
    assert second is not first and second.generation > first.generation


@contextmanager
def told(code: str, path: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """A process that runs Python with a gallery's path as its argument: its input and output."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdin, process.stdout


def test_readers_in_other_processes_are_isolated(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 20)
    code = (
        "import sys; from cir_infer.gallery import Gallery\n"
        "snapshot = Gallery.open(sys.argv[1], read_only=True).snapshot()\n"
        "print('holding', flush=True); sys.stdin.readline()\n"
        "rows = snapshot.live_rows()\n"
        "matching = snapshot.matching('number >= 15')\n"
        "print(','.join(snapshot.ids(rows)), matching, snapshot.rows.take(rows).sum())\n"
    )
    expected = gallery.snapshot().rows.take(range(20)).sum()
    with told(code, gallery.path) as (other, said):
        assert said.readline() == "holding\n"
        gallery.remove(names(20)[3:])
        gallery.compact()
        assert len(row_files(gallery)) == 2  # the reader still needs the old one
        other.write("\n")
        other.flush()
        ids, matching, total = said.readline().split()
    assert ids == ",".join(names(20)) and matching == "5" and total == str(expected)
    gallery.remove(["i0"])  # any commit sweeps up behind a reader that is gone
    assert len(row_files(gallery)) == 1
    assert gallery.verify().ok


def test_every_commit_of_another_process_shows_at_once_though_sqlite_is_not_asked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generation = Catalogue.generation

    def counted(self: Catalogue) -> int:
        asked.append(generation(self))
        return asked[-1]

    monkeypatch.setattr(Catalogue, "generation", counted)
    filled(tmp_path / "g", 1).close()
    # A log that is written back whole and begun anew has as many frames as it had before.
    code = (
        "import sys; from cir_infer.gallery import Gallery\n"
        "gallery = Gallery.open(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    gallery.add_vectors(ids=[line.strip()], vectors=[[1.0] * 8])\n"
        "    links = gallery._store.catalogue.links\n"
        "    link = links.take_writer()\n"
        "    print(link.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0], flush=True)\n"
        "    links.give_back_writer(link)\n"
    )
    gallery = Gallery.open(tmp_path / "g", read_only=True)
    with told(code, gallery.path) as (other, said):
        for number in range(12):
            first = gallery.snapshot()
            assert len(first) == 1 + number
            assert gallery.snapshot() is first
            asked.clear()
            assert [gallery.snapshot() is first for _ in range(20)] == [True] * 20
            if sys.platform.startswith("linux"):  # elsewhere nobody can tell but SQLite
                assert not asked
            other.write(f"other {number}\n")
            other.flush()
            assert said.readline() == "0\n"
        other.close()
    assert gallery.snapshot().row("other 11") == 12


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("look", [0, 1, 2, 3])
def test_a_commit_beside_any_look_at_the_catalogue_shows_in_the_next_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int, first: bool
) -> None:
    filled(tmp_path / "g", 3).close()
    with Gallery.open(tmp_path / "g") as gallery, Gallery.open(tmp_path / "g", read_only=True) as reader:
        looks: list[int] = []
        generation = Catalogue.generation

        def beside(self: Catalogue) -> int:
            looks.append(look)
            if len(looks) - 1 != look:
                return generation(self)
            monkeypatch.undo()
            found = None if first else generation(self)
            gallery.remove(["i0"])
            return generation(self) if found is None else found

        monkeypatch.setattr(Catalogue, "generation", beside)
        for _ in range(4):  # the last ones ask nobody
            reader.snapshot()
        monkeypatch.undo()
        for left in (2, 1, 0):
            if left < 2 or len(looks) <= look:
                gallery.remove([f"i{2 - left}"])
            assert [len(reader.snapshot()) for _ in range(3)] == [left] * 3


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_compaction_keeps_rows_in_order_and_frees_the_rest(tmp_path: Path, dtype: str) -> None:
    gallery = filled(tmp_path / "g", 0, dtype=dtype)
    rows = vectors(60)
    for start in range(0, 60, 10):
        part = slice(start, start + 10)
        gallery.add_vectors(
            ids=names(60)[part], vectors=rows[part], metadata=[{"n": n} for n in range(60)[part]]
        )
    gallery.remove(names(60)[::3])
    kept = [item for item in names(60) if item not in names(60)[::3]]
    before = contents(gallery.snapshot())
    report = gallery.compact()
    assert (report.segments_before, report.segments_after, report.rows_dropped) == (6, 1, 20)
    snapshot = gallery.snapshot()
    assert snapshot.rows.count == snapshot.count == 40 and snapshot.live is None
    assert gallery.ids == kept and contents(snapshot) == before
    assert snapshot.row("i59") == 39 and snapshot.row("i57") is None
    assert snapshot.matching({"n": {">=": 30}}) == 20
    assert len(row_files(gallery)) == 1 and gallery.verify().ok
    with gallery._store.catalogue.reading() as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (40,)
        assert connection.execute("SELECT count(*) FROM attributes").fetchone() == (40,)
    assert gallery.compact().rows_dropped == 0  # nothing left to do


def test_compaction_leaves_large_clean_segments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SMALL", 10)
    gallery = filled(tmp_path / "g", 0)
    for prefix, count in (("a", 20), ("b", 5), ("c", 5), ("d", 20), ("e", 20)):
        gallery.add_vectors(ids=names(count, prefix), vectors=vectors(count))
    gallery.remove(["d3"])
    files = row_files(gallery)
    report = gallery.compact()
    assert (report.segments_before, report.segments_after, report.rows_dropped) == (5, 3, 1)
    assert files[0] in row_files(gallery) and files[4] in row_files(gallery)
    order = names(20, "a") + names(5, "b") + names(5, "c") + names(20, "d") + names(20, "e")
    assert gallery.ids == [item for item in order if item != "d3"]


def test_compacting_everything_away(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 5)
    gallery.remove(names(5))
    assert gallery.compact().rows_dropped == 5
    assert len(gallery) == 0 and row_files(gallery) == [] and gallery.verify().ok
    gallery.add_vectors(ids=names(3), vectors=vectors(3))
    assert gallery.ids == names(3)


def test_masks_have_one_bit_a_row(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 13)
    snapshot = gallery.snapshot()
    mask = snapshot.where("parity = even")
    assert mask is not None and mask.dtype == np.uint8 and mask.shape == (2,)
    assert rows_of(mask, 13) == list(range(0, 13, 2))
    assert snapshot.where(None) is None
    gallery.remove(["i2"])
    snapshot = gallery.snapshot()
    assert rows_of(snapshot.where(None), 13) == [row for row in range(13) if row != 2]
    assert rows_of(snapshot.where("parity = even"), 13) == [0, 4, 6, 8, 10, 12]
    assert snapshot.where("parity = even") is snapshot.where({"parity": "even"})
    assert rows_of(snapshot.where("parity = blue"), 13) == [] and snapshot.matching("parity = blue") == 0


def test_a_removed_item_has_no_row_though_its_row_was_just_asked_for(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 5) as gallery:
        gallery.remove(names(2))
        snapshot = gallery.snapshot()
        told = [item.id for item in snapshot.items(range(5))]
        assert told == names(5)
        assert [snapshot.row(name) for name in told] == [None, None, 2, 3, 4]


def test_a_row_is_looked_up_once_however_often_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    columns = Catalogue.columns

    def counted(self: Catalogue, wanted: Sequence[str], keys: Sequence[int]) -> Any:
        asked.extend(keys)
        return columns(self, wanted, keys)

    monkeypatch.setattr(Catalogue, "columns", counted)
    snapshot = filled(tmp_path / "g", 20).snapshot()
    rows = [3, 7, 3, 19, 7, 3]
    items = snapshot.items(rows)
    assert [item.id for item in items] == [f"i{row}" for row in rows]
    assert len(asked) == 3
    items[0].metadata["number"] = "of one answer only"
    again = snapshot.items([0, *rows])
    assert [item.metadata["number"] for item in again] == [0, *rows]
    assert len(asked) == 4


def test_rows_out_of_range_are_refused(tmp_path: Path) -> None:
    snapshot = filled(tmp_path / "g", 3).snapshot()
    for rows in ([3], [-1]):
        with pytest.raises(GalleryError, match=f"row {rows[0]} asked"):
            snapshot.ids(rows)
    with pytest.raises(GalleryError, match="row 3 asked"):
        snapshot.vector(3)


def test_many_small_commits_stay_few_segments(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 0)
    rows = vectors(150)
    held = gallery.snapshot()
    most = 0
    for number in range(150):
        gallery.add_vectors(ids=[f"i{number}"], vectors=rows[number : number + 1], metadata=[{"n": number}])
        if number % 10 == 5:
            gallery.remove([f"i{number - 3}"])
        most = max(most, gallery.snapshot().segment_count)
    assert most <= 64 + 8 and held.count == 0
    kept = [number for number in range(150) if (number + 3) % 10 != 5]
    snapshot = gallery.snapshot()
    assert gallery.ids == [f"i{number}" for number in kept] and snapshot.matching("n >= 0") == len(kept)
    np.testing.assert_array_equal(snapshot.rows.take(snapshot.live_rows()), rows[kept].astype(np.float16))
    del held, snapshot
    gallery.compact()
    assert gallery.verify().ok and len(row_files(gallery)) == 1


def test_rows_and_ids_that_are_none_are_refused(tmp_path: Path) -> None:
    snapshot = filled(tmp_path / "g").snapshot()
    assert snapshot.ids(np.array([1, 2], np.uint8)) == ["i1", "i2"] and snapshot.items([]) == []
    for rows in ([0.5], ["a"], [True], None, [[0]], object(), [2**64], [[0], [0, 1]]):
        for read in (snapshot.ids, snapshot.items, snapshot.metadata, snapshot.sources):
            with pytest.raises(CirError, match=r"row"):
                read(rows)  # type: ignore[arg-type]
    for row in (-1, 10, 2**64, 10**6000, 0.5, True, [0], None):
        with pytest.raises(CirError, match="row") as caught:
            snapshot.vector(row)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200
    for item in (1, None, b"i1", ["i1"]):
        with pytest.raises(UsageError, match="expected an id"):
            snapshot.row(item)  # type: ignore[arg-type]
    assert snapshot.row("\ud800") is None and snapshot.row(np.str_("i1")) == 1


def test_endless_lists_end_with_their_first_wrong_entry(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    for ids in (range(10**15), itertools.count()):
        with pytest.raises(GalleryError, match="an id is 0"):
            gallery.remove(ids)  # type: ignore[arg-type]
    for sources in (range(10**15), itertools.repeat(None)):
        with pytest.raises(GalleryError, match=r"sources has .* entries for 1 ids"):
            gallery.add_vectors(ids=["x"], vectors=vectors(1), sources=sources)  # type: ignore[arg-type]
