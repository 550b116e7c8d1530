"""A gallery in several processes and copies, and whatever else in this process opens its files."""

from __future__ import annotations

import copy
import fcntl
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.disk.locks import GalleryBusyError
from tests.gallery.forked import elsewhere, ended, forked
from tests.gallery.support import filled, names, vectors


def copied(path: Path) -> None:
    shutil.copytree(path, path.with_name("copy"))


def read_by_hand(path: Path) -> None:
    for file in path.iterdir():
        if file.is_file():
            file.read_bytes()


@pytest.mark.parametrize("careless", [copied, read_by_hand])
def test_whoever_opens_the_files_in_this_process_takes_no_lock_away(
    tmp_path: Path, careless: Callable[[Path], None]
) -> None:
    gallery = filled(tmp_path / "g")
    careless(tmp_path / "g")
    # The other process would take itself for the last one, and remove the log.
    assert elsewhere(tmp_path / "g", "g.add_vectors(ids=['theirs'], vectors=np.ones((1, 8)))") == ""
    gallery.add_vectors(ids=["mine"], vectors=vectors(1))
    assert gallery.ids == [*names(10), "theirs", "mine"]
    assert elsewhere(tmp_path / "g", "print(len(g), g.verify().ok)") == "12 True"
    gallery.close()
    assert elsewhere(tmp_path / "g", "print(len(g), g.verify().ok)") == "12 True"


def test_closing_one_of_two_objects_takes_nothing_from_the_other(tmp_path: Path) -> None:
    one = filled(tmp_path / "g")
    two = Gallery.open(tmp_path / "g")
    one.close()
    elsewhere(tmp_path / "g", "g.remove(['i1'])")
    two.add_vectors(ids=["mine"], vectors=vectors(1))
    elsewhere(tmp_path / "g", "g.remove(['i2'])")
    assert set(two.ids) == {*names(10), "mine"} - {"i1", "i2"}
    two.close()
    assert not list((tmp_path / "g").glob("catalogue.sqlite-*")), "the last one writes the log back"
    assert elsewhere(tmp_path / "g", "print(len(g))") == "9"


def test_a_gallery_that_is_copied_or_pickled_is_opened_again(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    for again in (copy.copy(gallery), copy.deepcopy(gallery), pickle.loads(pickle.dumps(gallery))):
        assert again is not gallery and again.path == gallery.path and again.ids == names(10)
        again.close()
    gallery.remove(["i1"])
    assert "i1" not in gallery
    told = pickle.dumps(gallery)
    gallery.close()
    with pytest.raises(GalleryError, match="closed"):
        pickle.dumps(gallery)
    shutil.rmtree(tmp_path / "g")
    filled(tmp_path / "g").close()
    with pytest.raises(GalleryError, match="another gallery"):
        pickle.loads(told)


def test_a_snapshot_cannot_be_pickled(tmp_path: Path) -> None:
    with filled(tmp_path / "g") as gallery, pytest.raises(GalleryError, match="copy the Gallery"):
        pickle.dumps(gallery.snapshot())


def count(gallery: Gallery) -> int:
    return len(gallery)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_gallery_goes_to_worker_processes(tmp_path: Path, method: str) -> None:
    with filled(tmp_path / "g") as gallery, multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(count, [gallery] * 4) == [10] * 4


def test_a_writer_waits_a_moment_for_another(tmp_path: Path) -> None:
    one = filled(tmp_path / "g")
    two = Gallery.open(tmp_path / "g", wait=30)
    began, order = threading.Event(), []

    def slow() -> None:
        with one.writing():
            began.set()
            time.sleep(0.2)
            order.append("one")

    thread = threading.Thread(target=slow)
    thread.start()
    began.wait()
    two.remove(["i1"])
    order.append("two")
    thread.join()
    assert order == ["one", "two"]


def test_a_process_that_dies_holding_the_lock_is_neither_waited_for_nor_named(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    pids: list[int] = []

    def work() -> None:
        with gallery.writing():
            os._exit(0)

    child = forked(work)
    pids.append(child[0])
    assert ended(child) == 0
    gallery.remove(["i1"])
    # As a reader does that may not write to the gallery's folders.
    guard = os.open(tmp_path / "g" / "writer.lock", os.O_RDONLY)
    fcntl.flock(guard, fcntl.LOCK_SH)
    with pytest.raises(GalleryBusyError) as caught, Gallery.open(tmp_path / "g", wait=0) as other:
        other.remove(["i2"])
    os.close(guard)
    assert str(pids[0]) not in str(caught.value) and "one writer at a time" in str(caught.value)
