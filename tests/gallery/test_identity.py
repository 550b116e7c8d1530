"""A gallery is what was opened, not what its name leads to later."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from tests.gallery.support import DIM, filled, names, vectors


def tagged(path: Path, tag: str, value: float) -> None:
    with Gallery.create(path, dimension=4) as gallery:
        gallery.add_vectors(ids=names(20, tag), vectors=np.full((20, 4), value), metadata=[{"tag": tag}] * 20)


def by_rename(home: Path) -> None:
    (home / "shop").rename(home / "v0")
    (home / "v2").rename(home / "shop")


def by_link(home: Path) -> None:
    (home / "next").symlink_to("v2")
    (home / "next").replace(home / "shop")


def by_copy(home: Path) -> None:
    """Another catalogue in the same folder, as a careless restore makes it."""
    shutil.rmtree(home / "shop" / "rows")
    shutil.copytree(home / "v2" / "rows", home / "shop" / "rows")
    (home / "shop" / "catalogue.sqlite").unlink()
    shutil.copy(home / "v2" / "catalogue.sqlite", home / "shop")


@pytest.mark.parametrize("exchange", [by_rename, by_link, by_copy])
def test_an_exchanged_gallery_is_never_mixed_with_the_other(
    tmp_path: Path, exchange: Callable[[Path], None]
) -> None:
    tagged(tmp_path / "v2", "new", 2.0)
    if exchange is by_link:
        tagged(tmp_path / "v1", "old", 1.0)
        (tmp_path / "shop").symlink_to("v1")
    else:
        tagged(tmp_path / "shop", "old", 1.0)
    gallery = Gallery.open(tmp_path / "shop", read_only=True)
    held = gallery.snapshot()
    held.items([3])
    answers: set[tuple[str, float]] = set()
    refusals: list[str] = []
    gate = threading.Barrier(9)

    def read() -> None:
        gate.wait()
        for _ in range(50):
            try:
                snapshot = gallery.snapshot()
                item = snapshot.items([3])[0]
                answers.add((item.id[:3], float(snapshot.vector(3)[0])))
                assert item.metadata["tag"] == item.id[:3]
            except GalleryError as error:
                refusals.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.wait()
    exchange(tmp_path)
    for thread in threads:
        thread.join()
    assert answers <= {("old", 1.0)}
    with pytest.raises(GalleryError, match="open it again") as caught:
        gallery.snapshot()
    assert "exchanged for another" in str(caught.value)
    if exchange is not by_copy:  # what is held goes on showing the old one
        assert held.items([3])[0].id == "old3"
    gallery.close()
    with Gallery.open(tmp_path / "shop") as other:
        assert other.ids[3] == "new3"


@pytest.mark.parametrize("what", ["exchanged", "moved", "removed"])
def test_a_change_of_what_is_not_there_any_more_is_refused(tmp_path: Path, what: str) -> None:
    gallery = filled(tmp_path / "g")
    (tmp_path / "g").rename(tmp_path / "moved")
    if what == "exchanged":
        filled(tmp_path / "g", 3).close()
    elif what == "removed":
        shutil.rmtree(tmp_path / "moved")
    for change in (
        lambda: gallery.remove(["i1"]),
        lambda: gallery.add_vectors(ids=["z"], vectors=vectors(1)),
        gallery.compact,
        gallery.snapshot,
    ):
        with pytest.raises(GalleryError, match="exchanged" if what == "exchanged" else "moved or removed"):
            change()
    gallery.close()
    if what == "moved":
        (tmp_path / "moved").rename(tmp_path / "g")
        with Gallery.open(tmp_path / "g") as again:
            assert again.ids == names(10) and again.verify().ok


def test_a_gallery_that_is_moved_back_goes_on(tmp_path: Path) -> None:
    with filled(tmp_path / "g") as gallery:
        (tmp_path / "g").rename(tmp_path / "moved")
        (tmp_path / "moved").rename(tmp_path / "g")
        gallery.remove(["i1"])
        assert "i1" not in gallery and gallery.verify().ok


def test_the_current_folder_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    filled(tmp_path / "b" / "g", 3).close()
    monkeypatch.chdir(tmp_path / "a")
    with filled(Path("g"), 10) as gallery:
        held = gallery.snapshot()
        os.chdir(tmp_path / "b")
        gallery.remove(["i1"])
        gallery.add_vectors(ids=["z"], vectors=vectors(1))
        assert len(gallery) == 10 and held.count == 10 and gallery.path == tmp_path / "a" / "g"
    with Gallery.open(tmp_path / "b" / "g") as other:
        assert len(other) == 3


def test_two_spellings_are_one_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g")
    (tmp_path / "link").symlink_to("g")
    monkeypatch.chdir(tmp_path)
    spellings = ["link", "./g", str(tmp_path / "g" / ".." / "g"), tmp_path / "link"]
    others = [Gallery.open(spelling, wait=0) for spelling in spellings]
    for number, other in enumerate(others):
        with gallery.writing(), pytest.raises(GalleryError, match="is writing"):
            other.remove(["i9"])
        other.remove([f"i{number}"])
        assert len(gallery) == 9 - number
    gallery.close()
    for other in others:
        assert other.ids == names(10)[4:]
        other.close()
    assert Gallery.open(tmp_path / "g").verify().ok


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_holder_notices_that_his_lock_file_is_gone(tmp_path: Path, how: str) -> None:
    with filled(tmp_path / "g") as gallery, Gallery.open(tmp_path / "g", wait=0) as other:
        with gallery.writing():
            gallery.remove(["i1"])
            (tmp_path / "g" / "writer.lock").unlink()
            if how == "replaced":
                (tmp_path / "g" / "writer.lock").touch()
            other.add_vectors(ids=["theirs"], vectors=vectors(1))
            with pytest.raises(GalleryError, match=r"writer\.lock was removed or replaced"):
                gallery.remove(["i2"])
        gallery.remove(["i3"])
        assert sorted(gallery.ids) == sorted({*names(10), "theirs"} - {"i1", "i3"})
        assert gallery.verify().ok


def test_a_writer_whose_lock_was_stolen_between_its_look_and_its_commit_changes_nothing(
    tmp_path: Path,
) -> None:
    with filled(tmp_path / "g") as gallery, Gallery.open(tmp_path / "g") as other:
        store = gallery._store
        check = store._lock.check

        def steal(hold: object) -> None:
            store._lock.check = check  # type: ignore[method-assign]
            (tmp_path / "g" / "writer.lock").unlink()
            other.add_vectors(ids=["theirs"], vectors=vectors(1))

        store._lock.check = steal  # type: ignore[method-assign]
        with pytest.raises(GalleryError, match="somebody else has written"):
            gallery.add_vectors(ids=["mine"], vectors=vectors(1))
        assert gallery.ids == [*names(10), "theirs"] and gallery.verify().ok


def test_a_log_that_is_removed_is_noticed(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    (tmp_path / "g" / "catalogue.sqlite-wal").unlink()
    with pytest.raises(GalleryError, match=r"log .* was removed, replaced or cut"):
        gallery.remove(["i1"])
    gallery.close()


def test_a_pin_that_is_removed_is_named(tmp_path: Path) -> None:
    with filled(tmp_path / "g") as gallery:
        held = gallery.snapshot()
        for pin in (tmp_path / "g" / "readers").iterdir():
            if pin.name != "0":
                pin.unlink()
        gallery.remove(["i1"])
        gallery.compact()
        with pytest.raises(GalleryError, match="pin of generation"):
            held.ids(held.live_rows())
        assert held.vector(1).shape == (DIM,)


@pytest.mark.parametrize("part", ["catalogue.sqlite-wal", "catalogue.sqlite-shm"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_processes_that_do_not_share_the_log_do_not_overwrite_each_other(
    tmp_path: Path, part: str, how: str
) -> None:
    filled(tmp_path / "g").close()
    gallery = Gallery.open(tmp_path / "g")
    gallery.add_vectors(ids=["mine"], vectors=vectors(1))
    held = gallery.snapshot()
    file = tmp_path / "g" / part
    if how == "replaced":
        shutil.copy(file, tmp_path / "copy")
    file.unlink()
    if how == "replaced":
        shutil.copy(tmp_path / "copy", file)
    with pytest.raises(GalleryError, match=rf"log \({part}\) was removed, replaced or cut"):
        gallery.add_vectors(ids=["lost"], vectors=vectors(1))
    with pytest.raises(GalleryError, match=rf"log \({part}\) was removed, replaced or cut"):
        gallery.snapshot()  # what others commit from now on would never show
    assert held.vector(1).shape == (DIM,)
    if part == "catalogue.sqlite-wal":  # what only the log held went with it
        gallery.close()
        return
    program = (
        "import os, sys\nimport numpy as np\nfrom cir_infer.gallery import Gallery\n"
        "gallery = Gallery.open(sys.argv[1])\n"
        "gallery.add_vectors(ids=['theirs'], vectors=np.ones((1, gallery.dimension)))\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "g")], check=True)
    gallery.close()  # writes nothing back over it
    with Gallery.open(tmp_path / "g") as again:
        assert again.ids == [*names(10), "mine", "theirs"] and again.verify().ok


def test_a_catalogue_of_two_names_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    shutil.copytree(tmp_path / "g", tmp_path / "copy", copy_function=os.link)
    for path in (tmp_path / "g", tmp_path / "copy"):
        for read_only in (True, False):
            with pytest.raises(GalleryError, match=r"has 2 names.*cir-gallery backup"):
                Gallery.open(path, read_only=read_only)
    shutil.copy(tmp_path / "copy" / "catalogue.sqlite", tmp_path / "own")
    (tmp_path / "own").replace(tmp_path / "copy" / "catalogue.sqlite")
    for path in (tmp_path / "g", tmp_path / "copy"):  # row files may be shared
        with Gallery.open(path) as gallery:
            gallery.remove(["i1"])
            gallery.compact()
            assert gallery.verify().ok


def test_a_relative_path_needs_a_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for call in (
        lambda: Gallery.open("x"),
        lambda: Gallery.create("x", dimension=4),
        lambda: gallery.backup("x"),
        lambda: gallery.export("x.safetensors"),
        lambda: gallery.export("x"),
        lambda: Gallery.import_from("x", "y.safetensors", unknown_fingerprint=True),
    ):
        with pytest.raises(GalleryError):
            call()
    gallery.close()


LOOKS: list[Callable[[Gallery], object]] = [
    lambda gallery: gallery.snapshot(),
    lambda gallery: gallery.verify(),
    lambda gallery: gallery.add_vectors(ids=["z"], vectors=vectors(1)),
    lambda gallery: list(gallery.stamps()),
]


@pytest.mark.skipif(sys.platform != "linux", reason="the index of the log is held open for its locks")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("left", [0, 20_000])
def test_a_log_that_is_cut_is_noticed(tmp_path: Path, look: Callable[[Gallery], object], left: int) -> None:
    with filled(tmp_path / "g", 100) as gallery:
        held = gallery.snapshot()
        os.truncate(tmp_path / "g" / "catalogue.sqlite-wal", left)
        with pytest.raises(GalleryError, match=r"catalogue\.sqlite-wal.*cut while it was open"):
            look(gallery)
        with pytest.raises(GalleryError, match="cut while it was open"):
            held.items(range(100))


def test_a_log_that_is_begun_anew_is_not_cut(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 100) as gallery:
        for number in range(3):
            gallery.snapshot()
            with sqlite3.connect(tmp_path / "g" / "catalogue.sqlite") as other:
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            other.close()
            gallery.add_vectors(ids=[f"more{number}"], vectors=vectors(1))
        assert len(gallery.snapshot()) == 103 and gallery.verify().ok
