"""A lock is its process' own: no forked child holds on to it."""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from cir_infer.errors import DatasetError, GalleryError
from cir_infer.gallery.disk import drafts
from cir_infer.gallery.disk.folder import LOCK
from cir_infer.processes import announcing
from cir_infer.processes.locked_files import alone_in, locked_file
from cir_infer.processes.outputs import replacing, scratch_beside
from cir_infer.runtime.tensorrt.plan_cache import PlanCache
from cir_infer.runtime.tensorrt.plan_file import PlanKey
from cir_infer.serving.pictures import Pictures
from tests.gallery.support import filled
from tests.processes.forking import Child

Begun: TypeAlias = Callable[[Path], AbstractContextManager[object]]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.let_go()


def is_free(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_a_child_forked_while_another_thread_opens_a_file_does_not_lock_it(
    tmp_path: Path, children: list[Child]
) -> None:
    path = tmp_path / "lock"
    forks = threading.Thread(target=lambda: children.append(Child()))

    def opened() -> io.FileIO:
        file = io.FileIO(path, "w")  # the system has it, and nothing else knows of it yet
        forks.start()
        forks.join(0.3)  # as long as nothing keeps it from forking, it is done by now
        return file

    with locked_file(opened) as file:
        forks.join()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not is_free(path)
    assert is_free(path)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    with filled(path / "g") as gallery, gallery.writing():
        yield path / "g" / LOCK


@contextmanager
def building(path: Path) -> Iterator[Path]:
    cache, key = PlanCache(path), PlanKey("0" * 64, "11.4", "7.5", "T4", "float16", {}, (), None)
    with cache.building("image", key):
        yield cache.path("image", key).with_suffix(".lock")


@contextmanager
def moving(path: Path) -> Iterator[Path]:
    with drafts._alone(path):
        yield path


@contextmanager
def training(path: Path) -> Iterator[Path]:
    with alone_in(path, DatasetError, "trains"):
        yield path


@pytest.mark.parametrize("locked", [writing, building, moving, training])
def test_what_is_locked_at_a_fork_is_free_when_the_parent_lets_it_go(
    tmp_path: Path, children: list[Child], locked: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    with locked(tmp_path) as path:
        assert not is_free(path)
        children.append(Child())
        assert not is_free(path)
    assert is_free(path)


@contextmanager
def replacing_one(path: Path) -> Iterator[object]:
    with replacing(path / "model.cir") as file:
        yield file


@contextmanager
def drafting(path: Path) -> Iterator[object]:
    with drafts.drafted(path / "shop", []) as draft:
        yield draft.write_bytes(b"")


@contextmanager
def changing(path: Path) -> Iterator[object]:
    with filled(path / "g") as gallery, Pictures(path / "new").changing(gallery) as note:
        yield note


@contextmanager
def in_scratch(path: Path) -> Iterator[object]:
    with scratch_beside(path / "model.cir") as folder:
        yield folder


@pytest.mark.parametrize(
    ("begun", "names"),
    [
        (replacing_one, ".*.cir-part"),
        (in_scratch, ".*.cir-scratch"),
        (drafting, ".*.lock"),
        (changing, "new/.changing.*"),
    ],
)
@pytest.mark.parametrize("when", ["before", "behind"])
def test_what_is_made_while_others_look_for_what_was_left_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: Begun, names: str, when: str
) -> None:
    """Between being made and being locked it looks like what a killed process has left."""
    lock, taken = fcntl.flock, dict[Path, int]()

    def remove(path: Path) -> None:
        (Path.rmdir if path.is_dir() else Path.unlink)(path)

    def late(fd: Any, operation: int) -> None:
        new = list(tmp_path.glob(names))
        if new and not taken:
            taken[new[0]] = os.open(new[0], os.O_RDONLY)
            lock(taken[new[0]], fcntl.LOCK_EX | fcntl.LOCK_NB)
            if when == "before":
                remove(new[0])
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with begun(tmp_path):
        ((path, fd),) = taken.items()
        if when == "behind":
            remove(path)
        os.close(fd)
        (other,) = tmp_path.glob(names)
        assert other != path and not is_free(other)


def test_one_is_alone_in_a_folder(tmp_path: Path) -> None:
    with training(tmp_path):
        refused = pytest.raises(
            DatasetError, match=r"another process trains there; wait .* name another folder"
        )
        with refused, training(tmp_path):
            pass
        (tmp_path / "other").mkdir()
        with training(tmp_path / "other"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["other"]
    with training(tmp_path):
        pass
    with pytest.raises(DatasetError, match="cannot be opened"), training(tmp_path / "none"):
        pass


@pytest.mark.parametrize("made_again", [False, True])
def test_a_lock_on_a_folder_that_was_just_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """As `cir-bench systems` does with one in which nothing came to be, while the next is opening it."""
    folder, lock = tmp_path / "table", fcntl.flock
    folder.mkdir()

    def late(fd: int, operation: int) -> None:
        folder.rmdir()
        if made_again:
            folder.mkdir()
        lock(fd, operation)

    monkeypatch.setattr("cir_infer.processes.locked_files.fcntl.flock", late)
    with pytest.raises(DatasetError, match=r"was removed or replaced .* try again"), training(folder):
        pass


def test_a_thread_that_has_announced_something_does_not_wait_for_the_fork_that_waits_for_it(
    children: list[Child],
) -> None:
    forks = threading.Thread(target=lambda: children.append(Child()))
    token = announcing.announced()
    forks.start()
    while not announcing.another_forks():
        pass
    inner = announcing.announced()  # comes back at once
    assert forks.is_alive() and announcing.another_forks()
    del inner, token
    forks.join()
    assert not announcing.another_forks()


def test_a_fork_that_ends_does_not_end_that_of_another_thread() -> None:
    forks, over = threading.Event(), threading.Event()

    def begins() -> None:
        announcing.begin()
        forks.set()
        over.wait()
        announcing._after_fork_in_parent()

    thread = threading.Thread(target=begins)
    thread.start()
    forks.wait()
    announcing.begin()
    announcing._after_fork_in_parent()
    assert announcing.another_forks()
    over.set()
    thread.join()
    assert not announcing.another_forks()


def test_a_fork_of_whose_end_nobody_hears_holds_nobody_up_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python swallows an interrupt that comes before the first instruction of what runs behind a fork."""
    monkeypatch.setattr(announcing, "PATIENCE", 0.02)
    thread = threading.Thread(target=announcing.begin)
    thread.start()
    thread.join()
    token = announcing.announced()
    assert not announcing.another_forks()
    del token


def keeps_forks_waiting() -> bool:
    """As a fork of another thread finds it."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(announcing.are_awaited()))
    thread.start()
    thread.join()
    return found[0]


def test_what_failed_keeps_no_fork_waiting_while_its_error_is_kept(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    assert not keeps_forks_waiting()
    with pytest.raises(OSError, match="nothing") as of_file:
        locked_file(io.FileIO, tmp_path / "nothing" / "lock")
    gallery.close()
    with pytest.raises(GalleryError, match="closed") as of_gallery:
        gallery.snapshot()
    assert not keeps_forks_waiting()
    assert of_file.tb is not None and of_gallery.tb is not None
    token = announcing.announced()
    assert keeps_forks_waiting()
    del token
