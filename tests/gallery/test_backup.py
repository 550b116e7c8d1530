"""Backups: what they hold, where they go, and that nothing stands between the old one and the new one."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue.tables import Encoding
from cir_infer.gallery.changes.reencoding import Reencoding
from tests.gallery.load import Writer
from tests.gallery.support import as_version_1, filled, names, vectors


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with filled(tmp_path / "g", 20, fingerprint="f" * 64) as gallery:
        gallery.add_vectors(
            ids=["x", "i3"],
            vectors=vectors(2, 1),
            existing="replace",
            sources=["/x.jpg", None],
            stamps=["1", None],
        )
        gallery.remove(["i4"])
        yield gallery


def contents(gallery: Gallery) -> list[Any]:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    items = snapshot.items(rows)
    where = [rows_of(gallery, text) for text in ("parity = odd", "number >= 5", "number is null")]
    held = gallery.held([item.id for item in items])
    return [snapshot.fingerprint, items, snapshot.rows.take(rows).tolist(), held, where, gallery.next_key]


def rows_of(gallery: Gallery, where: str) -> list[str]:
    snapshot = gallery.snapshot()
    mask = snapshot.where(where)
    return snapshot.ids(np.flatnonzero(np.unpackbits(mask, bitorder="little")[: snapshot.row_count]))


def holds(path: Path) -> list[Any]:
    with Gallery.open(path, read_only=True) as backup:
        assert backup.verify().problems == []
        return contents(backup)


def inodes(path: Path) -> set[int]:
    return {file.stat().st_ino for file in (path / "rows").iterdir()}


def test_a_backup_holds_what_the_gallery_holds(gallery: Gallery, tmp_path: Path) -> None:
    report = gallery.backup(tmp_path / "b")
    assert (report.items, report.linked, report.copied, report.verified) == (20, 2, 0, True)
    assert holds(tmp_path / "b") == contents(gallery)
    assert inodes(tmp_path / "b") == inodes(gallery.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g"]
    with Gallery.open(tmp_path / "b") as backup:
        assert backup.uuid != gallery.uuid
        backup.add_vectors(ids=["own"], vectors=vectors(1))
        backup.compact()
        assert backup.verify().ok
    assert "own" not in gallery and gallery.verify().ok


def test_a_backup_is_brought_up_to_date(gallery: Gallery, tmp_path: Path) -> None:
    gallery.backup(tmp_path / "b")
    with Gallery.open(tmp_path / "b") as backup:
        uuid = backup.uuid
    gallery.add_vectors(ids=["late"], vectors=vectors(1))
    report = gallery.backup(tmp_path / "b")
    assert (report.kept, report.linked) == (2, 1)
    gallery.remove(["i0", "i9"])
    gallery.compact()
    report = gallery.backup(tmp_path / "b")
    assert report.kept == 0 and holds(tmp_path / "b") == contents(gallery)
    assert inodes(tmp_path / "b") == inodes(gallery.path), "rows of old commits are gone from the backup, too"
    with Gallery.open(tmp_path / "b") as backup:
        assert backup.uuid == uuid
    assert gallery.backup(tmp_path / "b").kept == 1


@pytest.mark.parametrize("seed", range(4))
def test_any_history_can_be_followed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with filled(tmp_path / "g", 30, dtype=rng.choice(["float16", "int8"])) as gallery:
        for step in range(25):
            match rng.choice(["add", "replace", "describe", "remove", "compact", "backup", "hold"]):
                case "add":
                    gallery.add_vectors(
                        ids=names(3, f"{step}-"), vectors=vectors(3, step), metadata=[{"number": step}] * 3
                    )
                case "replace":
                    some = rng.sample(gallery.ids, 4)
                    gallery.add_vectors(ids=some, vectors=vectors(4, step), existing="replace")
                case "describe":
                    gallery.set_metadata(rng.sample(gallery.ids, 3), [{"told": step}] * 3)
                case "remove":
                    gallery.remove(rng.sample(gallery.ids, 2))
                case "compact":
                    gallery.compact()
                case "hold":
                    held = gallery.snapshot()  # items and rows that the next compactions have to keep
                case "backup":
                    gallery.backup(tmp_path / "b")
                    assert holds(tmp_path / "b") == contents(gallery)
        gallery.backup(tmp_path / "b")
        assert holds(tmp_path / "b") == contents(gallery)
        held = gallery.snapshot()
        assert held.count == len(gallery)


def test_a_reencoded_gallery_is_followed(gallery: Gallery, tmp_path: Path) -> None:
    gallery.backup(tmp_path / "b")
    work = Reencoding(gallery._store, Encoding(0, "e" * 64, 16, "float16"))
    keys = [int(key) for key in work.missing()]
    work.add(keys[:5], vectors(5, 5, 16))
    gallery.backup(tmp_path / "b")  # in the middle of it: what is not current yet stays behind
    assert holds(tmp_path / "b") == contents(gallery)
    work.add(keys[5:], vectors(len(keys) - 5, 6, 16))
    assert work.finish()
    gallery.check_fingerprint("e" * 64)
    gallery.backup(tmp_path / "b")
    assert holds(tmp_path / "b") == contents(gallery) and holds(tmp_path / "b")[0] == "e" * 64


def test_whoever_reads_the_backup_reads_on(gallery: Gallery, tmp_path: Path) -> None:
    gallery.backup(tmp_path / "b")
    with Gallery.open(tmp_path / "b", read_only=True) as reader:
        held = reader.snapshot()
        before = held.items(held.live_rows())
        gallery.remove(["i0", "i1"])
        gallery.compact()
        for _ in range(2):
            gallery.backup(tmp_path / "b")
            gallery.add_vectors(ids=[f"late {len(gallery)}"], vectors=vectors(1))
        assert held.items(held.live_rows()) == before
        assert "i0" not in reader.ids and reader.verify().ok
    del held
    gallery.backup(tmp_path / "b")
    assert holds(tmp_path / "b") == contents(gallery)


def test_a_backup_is_one_moment_while_others_write(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "g")
    writer.store(names(40))
    stop = Event()

    def change() -> None:
        rng = random.Random(1)
        while not stop.is_set():
            match rng.choice(["store", "remove", "compact"]):
                case "store":
                    writer.store(rng.sample(names(60), 8))
                case "remove":
                    writer.remove(rng.sample(sorted(writer.states[-1]), 3))
                case "compact":
                    writer.compact()

    thread = Thread(target=change)
    thread.start()
    try:
        with Gallery.open(tmp_path / "g", read_only=True) as gallery:
            for _ in range(8):
                oldest = writer.acknowledged
                gallery.backup(tmp_path / "b")
                with Gallery.open(tmp_path / "b", read_only=True) as backup:
                    snapshot = backup.snapshot()
                    items = snapshot.items(snapshot.live_rows())
                    found = {item.id: item.metadata["version"] for item in items}
                assert found in writer.states[oldest : writer.begun + 1]
    finally:
        stop.set()
        thread.join()


def test_rows_are_copied_where_there_are_no_links(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = gallery.backup(tmp_path / "copied", link=False)
    assert (report.linked, report.copied) == (0, 2) and report.bytes
    assert not inodes(tmp_path / "copied") & inodes(gallery.path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert gallery.backup(tmp_path / "elsewhere").copied == 2
    assert holds(tmp_path / "elsewhere") == holds(tmp_path / "copied") == contents(gallery)


def test_what_is_not_this_gallerys_backup_is_left_alone(gallery: Gallery, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(GalleryError, match=message):
            gallery.backup(path)

    refused(gallery.path, "is the gallery itself")
    refused(gallery.path / "rows" / "b", "inside the gallery")
    refused(tmp_path, "is no backup of this gallery")
    (tmp_path / "file").write_text("precious")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    refused(tmp_path / "photos", "is no backup of this gallery")
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"
    with filled(tmp_path / "other", 3) as other:
        refused(tmp_path / "other", "is a gallery, and no backup")
        other.backup(tmp_path / "other-backup")
        refused(tmp_path / "other-backup", "the backup of another gallery")
        assert len(other) == 3
    gallery.backup(tmp_path / "b")
    with Gallery.open(tmp_path / "b") as backup:
        backup.remove(["x"])
    refused(tmp_path / "b", "was changed since it was made")
    (tmp_path / "link").symlink_to(gallery.path)
    refused(tmp_path / "link", "is the gallery itself")
    (tmp_path / "circle").symlink_to("circle")
    refused(tmp_path / "circle", "is a link that leads to itself")
    with pytest.raises(GalleryError, match="already exists"):
        gallery.export(tmp_path / "circle")
    (tmp_path / "empty").mkdir()
    assert gallery.backup(tmp_path / "empty").items == 20
    assert not list(tmp_path.glob(".*"))


def test_an_older_copy_of_the_gallery_does_not_take_over_its_backup(gallery: Gallery, tmp_path: Path) -> None:
    gallery.close()
    shutil.copytree(gallery.path, tmp_path / "older")
    with Gallery.open(gallery.path) as newer:
        newer.add_vectors(ids=["late"], vectors=vectors(1))
        newer.backup(tmp_path / "b")
        before = contents(newer)
    with Gallery.open(tmp_path / "older") as older:
        with pytest.raises(GalleryError, match="comes from an older copy"):
            older.backup(tmp_path / "b")
        older.add_vectors(ids=["another"], vectors=vectors(1))  # rows to the bit as those of "late"
        older.remove(["another"])
        with pytest.raises(GalleryError, match="holds other items under the same keys"):
            older.backup(tmp_path / "b")
    shutil.rmtree(tmp_path / "older")
    shutil.copytree(gallery.path, tmp_path / "older")
    with Gallery.open(gallery.path) as newer:
        newer.add_vectors(ids=["later"], vectors=vectors(1, 7))
        newer.backup(tmp_path / "b")
        before = contents(newer)
    with Gallery.open(tmp_path / "older") as older:
        for number in range(3):
            older.add_vectors(ids=[f"another {number}"], vectors=vectors(1, number))
        with pytest.raises(GalleryError, match="holds other rows under the name"):
            older.backup(tmp_path / "b")
    assert holds(tmp_path / "b") == before


@pytest.mark.parametrize("link", [True, False])
def test_a_damaged_gallery_gives_no_backup(gallery: Gallery, tmp_path: Path, link: bool) -> None:
    gallery.backup(tmp_path / "old")
    gallery.add_vectors(ids=["late"], vectors=vectors(1))
    rows = sorted((gallery.path / "rows").iterdir())[-1]
    data = bytearray(rows.read_bytes())
    data[-1] ^= 1
    rows.write_bytes(data)
    with pytest.raises(GalleryError, match=r"does not verify|is damaged"):
        gallery.backup(tmp_path / "b", link=link)
    assert not (tmp_path / "b").exists()
    if not link:
        before = holds(tmp_path / "old")
        with pytest.raises(GalleryError, match="is damaged"):
            gallery.backup(tmp_path / "old", link=False)
        assert holds(tmp_path / "old") == before


def test_format_1_is_backed_up_as_it_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "g", 10).close()
    as_version_1(tmp_path / "g")
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.backup(tmp_path / "b")
        gallery.backup(tmp_path / "b")
        assert gallery.format_version == 1 and holds(tmp_path / "b") == contents(gallery)
        gallery.upgrade()
        with pytest.raises(GalleryError, match="was upgraded since"):
            gallery.backup(tmp_path / "b")


def test_two_backups_to_one_place_at_once(gallery: Gallery, tmp_path: Path) -> None:
    gallery.backup(tmp_path / "b")
    with (
        Gallery.open(tmp_path / "b") as busy,
        Gallery.open(gallery.path, read_only=True, wait=0) as other,
        busy.writing(),
        pytest.raises(GalleryError, match="one writer at a time"),
    ):
        other.backup(tmp_path / "b")
    gallery.backup(tmp_path / "b")


def test_backups_to_one_place_at_once_are_one(gallery: Gallery, tmp_path: Path) -> None:
    done: list[object] = []

    def make() -> None:
        try:
            done.append(gallery.backup(tmp_path / "b").items)
        except BaseException as error:
            done.append(error)

    threads = [Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [len(gallery)] * 4
    assert holds(tmp_path / "b") == contents(gallery) and {p.name for p in tmp_path.iterdir()} == {"g", "b"}
