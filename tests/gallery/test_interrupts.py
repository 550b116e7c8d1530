"""Interrupts before any instruction of a call: no lock, pin or descriptor stays, and what is done is told."""

from __future__ import annotations

import fcntl
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.changes import upkeep
from cir_infer.gallery.disk import drafts, outcome
from cir_infer.shards.layout import ShardedGallery
from tests.gallery.interrupts import Bomb, Interrupt, descriptors, set_others_aside
from tests.gallery.support import DIM, filled, names, vectors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # An exception in a finalizer is printed and forgotten; the descriptor must be closed all the same.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    set_others_aside()  # the collector runs after each interrupt


def is_locked(path: Path) -> bool:
    file = os.open(path / "writer.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def pins(path: Path) -> set[str]:
    """The generations that somebody reads."""
    held = set()
    for pin in (path / "readers").iterdir():
        file = os.open(pin, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.add(pin.name)
        finally:
            os.close(file)
    return held


Change = Callable[[Gallery, int], object]


def add(gallery: Gallery, number: int) -> int:
    return gallery.add_vectors(ids=[f"a{number}", "always"], vectors=vectors(2), existing="replace")


def remove(gallery: Gallery, number: int) -> int:
    return gallery.remove([f"old{number}"])


def describe(gallery: Gallery, number: int) -> int:
    return gallery.set_metadata([f"old{number}", "always"], [{"n": number}] * 2)


def compact(gallery: Gallery, number: int) -> object:
    return gallery.compact()


def refused(gallery: Gallery, number: int) -> int:
    """A call that fails of itself, so that the interrupt may meet it on its way out."""
    try:
        return gallery.add_vectors(ids=["always"], vectors=vectors(1))
    except GalleryError:
        return 0


def prepared(path: Path) -> Gallery:
    gallery = Gallery.create(path, dimension=DIM)
    gallery.add_vectors(ids=["always", *names(3000, "old")], vectors=vectors(3001))
    return gallery


def state(gallery: Gallery) -> tuple[int, ...]:
    snapshot = gallery.snapshot()
    return (snapshot.generation, snapshot.count, snapshot.row_count, snapshot.segment_count)


def run(path: Path, change: Change, stride: int, only: tuple[str, ...] = ("",)) -> tuple[int, int]:
    """Interrupt a change before every stride-th instruction; how many interrupts, how many came too late."""
    gallery = prepared(path)
    number = late = interrupts = 0
    at = -stride
    while True:
        at += stride
        number += 1
        if change is compact:
            gallery.remove([f"old{number % 2900}"])
        elif number % 2900 == 2899:
            gallery.add_vectors(ids=names(3000, "old"), vectors=vectors(3000), existing="replace")
        before = state(gallery)
        bomb = Bomb(at, only)
        try:
            bomb(lambda number=number: change(gallery, number % 2900))
            if at and not bomb.fired:
                break  # there are not so many instructions
        except Interrupt as error:
            interrupts += 1
            # All this while the exception is alive, and with it the frames that it came through.
            assert not is_locked(path), f"the lock is held after an interrupt at {at}"
            after = state(gallery)
            if after[0] != before[0]:
                late += 1
                assert bomb.last or getattr(error, "durable", False), f"durable at {at}, and not told"
            else:
                assert not hasattr(error, "durable")
            gallery.add_vectors(ids=["always"], vectors=vectors(1), existing="replace")
        assert len(pins(path)) <= 1, f"pins are held after an interrupt at {at}"
        own = [entry for entry in descriptors() if str(path) in entry]
        assert len(own) <= 18, f"after an interrupt at {at}: {sorted(own)}"
    assert gallery.verify().ok
    gallery.close()
    assert not [entry for entry in descriptors() if str(path) in entry]
    return interrupts, late


@pytest.mark.parametrize(
    ("change", "stride"), [(add, 997), (describe, 997), (remove, 307), (compact, 1201), (refused, 401)]
)
def test_interrupts_in_the_middle_of_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, stride: int
) -> None:
    monkeypatch.setattr(upkeep, "MANY", 4)
    interrupts, late = run(tmp_path / "g", change, stride)
    assert interrupts > 10
    assert (late > 0) == (change is not refused)


OWN = ("cir_infer/gallery", "contextlib.py", "weakref.py", "_weakrefset.py")
"""Where descriptors, locks and turns are taken and given back."""


@pytest.mark.slow
@pytest.mark.parametrize("change", [add, describe, remove, compact, refused])
def test_interrupts_before_every_instruction_of_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    monkeypatch.setattr(upkeep, "MANY", 4)
    interrupts, late = run(tmp_path / "g", change, 1, OWN)
    print(f"{change.__name__}: {interrupts} interrupts, {late} behind the commit")
    assert interrupts > 1000


Call = Callable[[Gallery, int], object]


def look(gallery: Gallery, number: int) -> object:
    snapshot = gallery.snapshot()
    rows = snapshot.where(f"number < {number % 7 + 1}")
    return snapshot.items(range(3)), rows, snapshot.row("i5"), snapshot.matching("parity = odd")


def verify(gallery: Gallery, number: int) -> object:
    return gallery.verify()


def reencode(gallery: Gallery, number: int) -> object:
    bundle: Any = SimpleNamespace(fingerprint=f"bundle {number}", dimension=DIM)
    work = gallery.reencoding(bundle)
    keys = work.missing()
    work.add(keys.tolist(), vectors(len(keys)))
    return work.finish()


def reopen(gallery: Gallery, number: int) -> object:
    with Gallery.open(gallery.path) as other:
        return other.ids


def pickled(gallery: Gallery, number: int) -> object:
    return pickle.loads(pickle.dumps(gallery)).close()


@pytest.mark.parametrize(
    ("call", "stride"), [(look, 1009), (verify, 1999), (reencode, 3989), (reopen, 499), (pickled, 499)]
)
def test_interrupts_of_other_calls(tmp_path: Path, call: Call, stride: int) -> None:
    path = tmp_path / "g"
    writer = filled(path, 10)
    gallery = Gallery.open(path)
    interrupts = 0
    call(gallery, 0)  # imports what it needs
    writer.remove(["i0"])
    counting = Bomb()
    counting(lambda: call(gallery, 0))
    for at in range(stride, counting.count, stride):
        writer.add_vectors(ids=["new"], vectors=vectors(1), existing="replace")  # a new generation
        writer.compact()
        bomb = Bomb(at)
        try:
            bomb(lambda at=at: call(gallery, at))
        except Interrupt:
            interrupts += 1
            assert not is_locked(path), f"the lock is held after an interrupt at {at}"
        assert len(pins(path)) <= 3, f"pins are held after an interrupt at {at}"
        own = [entry for entry in descriptors() if str(path) in entry]
        assert len(own) <= 35, f"after an interrupt at {at}: {sorted(own)}"
        assert call(gallery, at) is not False
    assert interrupts > 5 and gallery.verify().ok
    gallery.close()
    writer.close()
    assert not [entry for entry in descriptors() if str(path) in entry]


def test_interrupts_of_making_a_gallery(tmp_path: Path) -> None:
    at = interrupts = late = 0
    while True:
        at += 499
        path = tmp_path / f"g{at}"
        bomb = Bomb(at)
        try:
            bomb(lambda path=path: Gallery.create(path, dimension=DIM)).close()
            if not bomb.fired:
                break
        except Interrupt as error:
            interrupts += 1
            if path.exists():
                late += 1
                assert getattr(error, "durable", False) or bomb.last, f"made at {at}, and not told"
            else:
                assert not hasattr(error, "durable")
        assert not [entry for entry in descriptors() if str(path) in entry], at
        assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")], at
        if path.exists():
            assert len(Gallery.open(path)) == 0
    assert interrupts > 20 and late > 0


def test_interrupts_between_the_making_of_a_gallery_and_its_opening(tmp_path: Path) -> None:
    def make(at: int) -> Bomb:
        path, bomb = tmp_path / f"g{at}", Bomb(at, only=("gallery/gallery.py",))
        try:
            bomb(lambda: Gallery.create(path, dimension=DIM)).close()
        except Interrupt as error:
            told = getattr(error, "durable", False)
            assert path.exists() == (told or bomb.last), f"made at {at}: {path.exists()}, told: {told}"
        return bomb

    count = make(0).count
    for at in range(count - 15, count + 1):
        assert make(at).fired


def export_file(gallery: Gallery, home: Path) -> Path:
    gallery.export(home / "e.safetensors", overwrite=True)
    return home / "e.safetensors"


def export_folder(gallery: Gallery, home: Path) -> Path:
    gallery.export(home / "e", overwrite=True)
    return home / "e"


def back_up(gallery: Gallery, home: Path) -> Path:
    return gallery.backup(home / "e").path


def sharded(gallery: Gallery, home: Path) -> Path:
    opened.append(ShardedGallery.create(home / "s", into=2, dimension=DIM))
    return home / "s"


opened: list[ShardedGallery] = []


@pytest.mark.parametrize("make", [export_file, sharded])
def test_an_interrupt_before_any_of_the_last_instructions_tells_what_is_done(
    tmp_path: Path, make: Callable[[Gallery, Path], Path]
) -> None:
    gallery = filled(tmp_path / "g", 2)
    for name in ("once", "count"):  # what happens only once has happened
        (tmp_path / name).mkdir()
        counting = Bomb(0, OWN)
        made = counting(lambda name=name: make(gallery, tmp_path / name)).name
    late = 0
    for at in [*range(200, counting.count - 900, 2011), *range(counting.count - 900, counting.count - 4, 19)]:
        home = tmp_path / f"home{at}"
        home.mkdir()
        bomb, told = Bomb(at, OWN), True
        try:
            bomb(lambda home=home: make(gallery, home))
        except Interrupt as error:
            told = getattr(error, "durable", False) or bomb.last
            late += told
        assert [entry.name for entry in home.iterdir()] == ([made] if told else []), at
    assert late > 0
    while opened:
        opened.pop().close()


def created(gallery: Gallery, home: Path) -> Path:
    Gallery.create(home / "g", dimension=DIM).close()
    return home / "g"


def imported(gallery: Gallery, home: Path) -> Path:
    Gallery.from_arrays(home / "g", ids=["one"], vectors=vectors(1)).close()
    return home / "g"


@pytest.mark.parametrize("make", [created, imported, export_file, sharded])
def test_what_another_call_makes_meanwhile_is_not_told_as_this_ones(
    tmp_path: Path, make: Callable[[Gallery, Path], Path]
) -> None:
    gallery = filled(tmp_path / "g", 2)
    home, counting = tmp_path / "home", Bomb(0, OWN)
    (tmp_path / "count").mkdir()
    home.mkdir()
    counting(lambda: make(gallery, tmp_path / "count"))
    faster: list[Path] = []
    bomb = Bomb(counting.count // 8, OWN, strike=lambda: faster.append(make(gallery, home)))
    with pytest.raises(GalleryError, match=r"(?i)exists|not empty") as caught:
        bomb(lambda: make(gallery, home))
    assert [*home.iterdir()] == faster
    assert not hasattr(caught.value, "durable") and not getattr(caught.value, "__notes__", [])
    while opened:
        opened.pop().close()


def test_what_is_taken_back_of_a_draft_leaves_the_notes_of_others(tmp_path: Path) -> None:
    error = GalleryError("no more rows")
    error.__notes__ = ["said by whoever gives the rows"]  # as `add_note` does from Python 3.11 on
    made: drafts.Made = []
    with pytest.raises(GalleryError), drafts.drafted(tmp_path / "g", made) as draft:
        Gallery.create(draft, dimension=DIM).close()
        outcome.tell_durable(error, "the draft is whole")
        raise error
    drafts.tell_of(error, tmp_path / "g", made)
    assert error.__notes__ == ["said by whoever gives the rows"] and not hasattr(error, "durable")


@pytest.mark.parametrize("make", [export_file, export_folder, back_up])
@pytest.mark.parametrize("again", [False, True])
def test_interrupts_of_what_makes_a_copy(
    tmp_path: Path, make: Callable[[Gallery, Path], Path], again: bool, times: int = 9
) -> None:
    """The copy before, the new one, or nothing where nothing was: whole, and without a leftover beside it."""
    if make is export_folder:
        pytest.importorskip("pyarrow")
    gallery = filled(tmp_path / "g", 10)
    (tmp_path / "count").mkdir()
    counting = Bomb(0, OWN)
    name = counting(lambda: make(gallery, tmp_path / "count")).name
    for at in range(counting.count // times // 2, counting.count, counting.count // times):
        home = tmp_path / f"home{at}"
        home.mkdir()
        before = len(gallery) if again else 0
        if again:
            make(gallery, home)
            gallery.add_vectors(ids=[f"at{at}"], vectors=vectors(1))
        bomb = Bomb(at, OWN)
        told = True
        try:
            bomb(lambda home=home: make(gallery, home))
        except Interrupt as error:
            told = getattr(error, "durable", False) or bomb.last
        left = {entry.name for entry in home.iterdir()}
        assert left - {name} <= ({".e.backup"} if make is back_up else set()), at  # the next one continues
        if name in left:
            held = held_by(home / name, tmp_path / f"imported{at}")
            assert held in ({len(gallery)} if told else {before, len(gallery)}), at
        assert (name in left) == (again or told), at
        assert not [entry for entry in descriptors() if str(home) in entry], at
        assert make(gallery, home).name == name and {entry.name for entry in home.iterdir()} == {name}, at
    assert gallery.verify().ok
    gallery.close()
    assert not [entry for entry in descriptors() if str(tmp_path) in entry]


def held_by(copy: Path, place: Path) -> int:
    """How many items a copy holds."""
    if (copy / "catalogue.sqlite").exists():
        with Gallery.open(copy) as gallery:
            assert gallery.verify().ok
            return len(gallery)
    with Gallery.import_from(place, copy, unknown_fingerprint=True) as gallery:
        return len(gallery)
