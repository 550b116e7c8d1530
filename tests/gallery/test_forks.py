"""A gallery in forked children, and forks beside whatever else uses it."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue import catalogue
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.sqlite import connections, forks
from cir_infer.processes import announcing
from tests.gallery.forked import elsewhere, ended, forked, in_child
from tests.gallery.support import filled, names, vectors


def test_a_forked_child_reads_and_writes_and_so_does_the_parent(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    held = gallery.snapshot()

    def work() -> None:
        assert held.ids(range(3)) == names(3) and held.matching("number < 4") == 4
        assert gallery.ids[:10] == names(10)
        for number in range(10):
            gallery.add_vectors(ids=[f"child{number}"], vectors=vectors(1))
            assert f"child{number}" in gallery
        gallery.compact()

    child = forked(work)
    for number in range(10):
        gallery.add_vectors(ids=[f"parent{number}"], vectors=vectors(1))
    assert ended(child) == 0
    everybody = {*names(10), *names(10, "child"), *names(10, "parent")}
    assert set(gallery.ids) == everybody and gallery.verify().ok
    gallery.close()
    with Gallery.open(tmp_path / "g") as again:
        assert set(again.ids) == everybody and again.verify().ok


def test_a_child_without_a_thread_to_try_sqlite_in_is_refused_until_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = filled(tmp_path / "g")

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    def work() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            with pytest.raises(GalleryError, match="limit of processes"):
                _ = gallery.ids
        assert gallery.ids == names(10)

    assert ended(forked(work)) == 0


@pytest.mark.parametrize("anew", [False, True])
def test_what_a_child_commits_after_the_parent_has_closed_is_there(tmp_path: Path, anew: bool) -> None:
    gallery = filled(tmp_path / "g", 1)
    go, begin = os.pipe()

    def work() -> None:
        own = Gallery.open(tmp_path / "g") if anew else gallery
        os.read(go, 1)
        for number in range(10):
            own.add_vectors(ids=[f"child{number}"], vectors=vectors(1))

    child = forked(work)
    gallery.close()
    elsewhere(tmp_path / "g", "g.add_vectors(ids=['other'], vectors=np.ones((1, 8)))")
    os.write(begin, b"1")
    assert ended(child) == 0
    with Gallery.open(tmp_path / "g") as again:
        assert set(again.ids) == {"i0", "other", *names(10, "child")} and again.verify().ok


def test_a_snapshot_stays_readable_in_a_child_when_the_parent_has_let_it_go(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    held = [gallery.snapshot()]
    go, begin = os.pipe()

    def work() -> None:
        os.read(go, 1)
        assert held[0].ids(held[0].live_rows()) == names(10)
        assert [item.metadata["number"] for item in held[0].items(range(10))] == list(range(10))

    child = forked(work)
    held.clear()
    gallery.remove(names(9))
    gallery.compact()
    gallery.remove(["i9"])
    os.write(begin, b"1")
    assert ended(child) == 0
    gallery.add_vectors(ids=["z"], vectors=vectors(1))
    assert len(list((tmp_path / "g" / "rows").iterdir())) <= 2


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    go, begin = os.pipe()
    looked, told = os.pipe()
    with gallery.writing():
        gallery.remove(["i1"])

        def work() -> None:
            with pytest.raises(GalleryBusyError, match=f"process {os.getppid()} is writing"):
                Gallery.open(tmp_path / "g", wait=0).remove(["i2"])
            os.write(told, b"1")
            os.read(go, 1)

        child = forked(work)
        os.read(looked, 1)
        gallery.remove(["i3"])
    elsewhere(tmp_path / "g", "g.remove(['i4'])")  # though the child lives on
    os.write(begin, b"1")
    assert ended(child) == 0


@pytest.mark.parametrize("closed", ["reader", "writer"])
def test_another_that_closes_after_a_fork_takes_no_log_from_those_that_rest(
    tmp_path: Path, closed: str
) -> None:
    """A fork closes idle connections of all; whoever comes first then is for a while the only one."""
    gallery = filled(tmp_path / "g", 10)
    resting = Gallery.open(tmp_path / "g")
    assert resting.verify().ok
    assert in_child(lambda: None) == 0
    if closed == "writer":
        gallery.remove(["i0"])
    assert gallery.verify().ok
    gallery.close()
    assert len(resting.snapshot()) == 10 - (closed == "writer")
    resting.add_vectors(ids=["new"], vectors=vectors(1))
    assert "new" in resting.ids and resting.verify().ok
    assert len(Gallery.open(tmp_path / "g")) == len(resting)


def test_one_that_rested_while_others_came_and_went_leaves_their_locks_alone(tmp_path: Path) -> None:
    """Its guard is that of before the fork; another has taken its place since."""
    first, resting = filled(tmp_path / "g", 10), Gallery.open(tmp_path / "g")
    assert resting.verify().ok
    assert in_child(lambda: None) == 0
    assert first.verify().ok
    first.close()
    third = Gallery.open(tmp_path / "g")
    assert third.verify().ok
    resting.close()
    with Gallery.open(tmp_path / "g") as fourth:
        assert fourth.verify().ok
        links = [gallery._store.catalogue.links for gallery in (third, fourth)]
        assert links[0]._guard is links[1]._guard is not None
    third.add_vectors(ids=["new"], vectors=vectors(1))
    assert third.verify().ok and len(Gallery.open(tmp_path / "g")) == 11


def test_a_log_that_was_lost_during_a_rest_is_missed_after_anothers_close(tmp_path: Path) -> None:
    """What the log held was acknowledged: to go on without it would be to lose it in silence."""
    gallery = filled(tmp_path / "g", 10)
    resting = Gallery.open(tmp_path / "g")
    resting.add_vectors(ids=["new"], vectors=vectors(1))
    assert len(gallery) == 11
    assert in_child(lambda: None) == 0
    (tmp_path / "g" / "catalogue.sqlite-wal").unlink()
    gallery.close()
    for call in (resting.snapshot, lambda: resting.held(["new"]), lambda: resting.remove(["new"])):
        with pytest.raises(GalleryError, match="was removed"):
            call()


def test_a_child_that_is_forked_inside_a_writing_block_is_no_writer(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    gallery = Gallery.open(tmp_path / "g", wait=0.2)

    def work() -> None:
        with pytest.raises(GalleryBusyError, match=f"process {os.getppid()} is writing"):
            gallery.remove(["i2"])

    with gallery.writing():
        assert in_child(work) == 0
        gallery.remove(["i1"])
    assert len(gallery) == 9


def test_forks_beside_calls_of_other_threads(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    gallery = Gallery.open(tmp_path / "g", wait=60)
    stop = threading.Event()
    errors: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                snapshot = gallery.snapshot()
                assert snapshot.matching("number >= 0") == 10
                snapshot.items(range(5))
            except BaseException:
                errors.append(traceback.format_exc())

    def write() -> None:
        for number in range(1000):
            if stop.is_set():
                break
            try:
                gallery.add_vectors(ids=[f"w{number}"], vectors=vectors(1))
            except BaseException:
                errors.append(traceback.format_exc())

    def work() -> None:
        assert gallery.snapshot().matching("number >= 0") == 10
        with gallery.writing():  # the parent writes as well, so this may wait
            gallery.add_vectors(ids=[f"c{os.getpid()}"], vectors=vectors(1))

    threads = [threading.Thread(target=target) for target in (read, read, write)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(5):
        children.append(forked(work))
        time.sleep(0.02)
    codes = [ended(child) for child in children]
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == [] and codes == [0] * 5
    assert sum(item.startswith("c") for item in gallery.ids) == 5 and gallery.verify().ok


def test_a_fork_waits_while_a_gallery_that_nobody_closed_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, go, closed = threading.Event(), threading.Event(), threading.Event()
    close = connections.Link.close

    def slow(link: connections.Link) -> None:
        closing.set()
        go.wait(120)
        close(link)
        closed.set()

    held = [filled(tmp_path / "g")]
    held[0].snapshot()

    def drop() -> None:
        held.clear()
        gc.collect()  # in this thread, which uses no gallery

    monkeypatch.setattr(connections.Link, "close", slow)
    thread = threading.Thread(target=drop)
    thread.start()
    assert closing.wait(120)
    threading.Timer(0.1, go.set).start()

    # SQLite's own locks are held while it closes, and a child would wait for them for ever.
    def is_closed() -> None:
        assert closed.is_set()

    assert in_child(is_closed) == 0
    thread.join()


def test_a_fork_beside_others_who_use_sqlite_works_or_is_refused_and_never_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_TRIAL", 0.5)
    gallery = filled(tmp_path / "g")
    stop = threading.Event()

    def use_sqlite(path: Path) -> None:
        while not stop.is_set():
            with closing(sqlite3.connect(path)) as link, link:
                link.execute("CREATE TABLE IF NOT EXISTS t AS SELECT randomblob(100)")

    def work() -> None:
        for _ in range(2):
            try:
                assert len(gallery.ids) == 10
            except GalleryError as error:
                assert "SQLite, which stays locked" in str(error)

    threads = [threading.Thread(target=use_sqlite, args=(tmp_path / f"{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    codes = [in_child(work) for _ in range(6)]
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6 and gallery.verify().ok


def test_a_fork_waits_while_a_gallery_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, made = threading.Event(), threading.Event()
    write = catalogue.insert_header

    def slow(*arguments: Any) -> None:
        inside.set()
        time.sleep(0.2)
        write(*arguments)
        made.set()

    monkeypatch.setattr(catalogue, "insert_header", slow)
    thread = threading.Thread(target=lambda: filled(tmp_path / "g", 0).close())
    thread.start()
    assert inside.wait(120)

    def is_made() -> None:
        assert made.is_set()

    assert in_child(is_made) == 0
    thread.join()


def test_who_uses_a_connection_takes_another_while_a_fork_waits_for_him(tmp_path: Path) -> None:
    """As a backup does. Else each waits for the other, and the child is refused."""
    gallery, other = filled(tmp_path / "g"), filled(tmp_path / "h")
    codes: list[int] = []
    forks = threading.Thread(target=lambda: codes.append(in_child(lambda: (len(gallery), other.ids))))
    with gallery._store.catalogue.reading():
        forks.start()
        while not announcing.another_forks():
            time.sleep(0.001)
        assert len(other) == 10
    forks.join()
    assert codes == [0]


def test_who_used_a_connection_that_another_takes_waits_for_the_fork_like_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else calls go on and on beside a fork, which waits for all of them in vain."""
    monkeypatch.setattr(announcing, "PATIENCE", 0.3)
    gallery = filled(tmp_path / "g")
    with gallery._store.catalogue.reading():
        pass
    forks = threading.Thread(target=lambda: in_child(lambda: None))
    taken = gallery._store.catalogue.links._idle.pop()  # by a thread that has come no further
    forks.start()
    while not announcing.another_forks():
        time.sleep(0.001)
    with gallery._store.catalogue.reading():
        assert not announcing.another_forks()
    forks.join()
    del taken


def test_a_fork_in_the_middle_of_a_call_is_refused_in_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcing, "PATIENCE", 0.05)
    gallery = filled(tmp_path / "g")
    inside, over = threading.Event(), threading.Event()

    def long_call() -> None:
        with gallery._store.catalogue.reading() as connection:
            connection.execute("SELECT key FROM items").fetchone()
            inside.set()
            over.wait()

    thread = threading.Thread(target=long_call)
    thread.start()
    inside.wait()

    def work() -> None:
        for use in (gallery.snapshot, lambda: gallery.remove(["i1"]), lambda: Gallery.open(tmp_path / "g")):
            with pytest.raises(GalleryError, match=r"forked while a call .* 'spawn'"):
                use()
        gallery.close()

    assert in_child(work) == 0
    over.set()
    thread.join()
    gallery.remove(["i1"])
    assert in_child(lambda: gallery.remove(["i2"])) == 0
    assert len(gallery) == 8 and gallery.verify().ok


def test_locks_of_threads_do_not_stay_locked_in_a_child(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    inside, over = threading.Event(), threading.Event()

    def opening() -> None:
        inside.set()
        over.wait()

    thread = threading.Thread(target=gallery._store._opening.take, args=(opening,))
    thread.start()
    inside.wait()
    assert in_child(lambda: gallery.ids) == 0
    over.set()
    thread.join()
    assert gallery.ids == names(10)
