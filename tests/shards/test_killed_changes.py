"""A change of shards that is killed, fails, or meets another: nothing is lost, and the next run ends it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cir_infer.errors import GalleryError, UsageError
from cir_infer.gallery import Gallery
from cir_infer.shards import ShardedGallery, ShardedSearcher, follow_folder, rebalance, remove_old
from cir_infer.shards.following import FollowingSearcher
from cir_infer.shards.layout import shard_of
from cir_infer.shards.listing import FILE, read_listing
from cir_infer.shards.succession import NEXT, succeed
from tests.gallery.interrupts import Bomb, Interrupt
from tests.gallery.support import DIM, filled, names, vectors
from tests.shards.test_succession import contents

_STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")
_OURS = (FILE, NEXT, "retired", ".gallery", ".removed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with filled(tmp_path / "g", 12) as one:
        ShardedGallery.split(one, tmp_path / "s", 2).close()
    return tmp_path / "s"


def moved_on(folder: Path) -> None:
    remove_old(folder, rebalance(folder, 3))


def killed_at(step: int, folder: Path) -> bool:
    """Change shards in a child that dies before it makes, renames or removes a file for that time.

    Returns:
        False if it came to its end before.
    """
    child = os.fork()
    if child == 0:
        left = [step]

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in _STEPS or (event == "open" and not int(arguments[2]) & os.O_CREAT):
                return
            if any(name in " ".join(map(str, arguments)) for name in _OURS):
                left[0] -= 1
                if not left[0]:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            moved_on(folder)
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def check_ended(folder: Path) -> None:
    """Nothing is left of a run, and changes are taken."""
    left = {entry.name for entry in folder.iterdir()}
    assert left == {FILE, "succession.lock", *read_listing(folder).shards}
    with ShardedGallery(folder) as gallery:
        gallery.of("new").add_vectors(ids=["new"], vectors=vectors(1), existing="replace")


@pytest.mark.parametrize("first", [pytest.param(1, marks=pytest.mark.slow), 0])
def test_killed_at_any_step(folder: Path, tmp_path: Path, first: int) -> None:
    """At each (slow), and at a few of them: while they are made, before and after the switch, at the end."""
    before, step = contents(folder), first or 17
    while True:
        place = tmp_path / f"k{step}"
        shutil.copytree(folder, place)
        alive = not killed_at(step, place)
        assert contents(place) == before
        moved_on(place)
        assert contents(place) == before
        check_ended(place)
        if alive:
            assert step > 40
            return
        step += 1 if first else 12


def test_a_switch_that_fails_leaves_shards_that_take_changes(folder: Path) -> None:
    listing, passes = read_listing(folder), []

    def fill(old: Any, new: Any) -> int:
        passes.append(1)
        if len(passes) == 1:
            for gallery in old:
                snapshot = gallery.snapshot()
                for item, row in zip(gallery.ids, snapshot.rows.take(snapshot.live_rows()), strict=True):
                    new[shard_of(item, len(new))].add_vectors(ids=[item], vectors=row[None])
            return 0
        (folder / FILE).rename(folder / "aside")
        (folder / FILE).mkdir()  # nothing can take its place now
        return 0

    with pytest.raises(GalleryError, match="changing over failed"):
        succeed(folder, listing, listing._replace(shards=("",) * 3), "float16", fill)
    (folder / FILE).rmdir()
    (folder / "aside").rename(folder / FILE)
    check_ended(folder)  # a full disk has its room again
    with ShardedGallery(folder) as gallery:
        for shard in gallery.shards:
            shard.compact()
    moved_on(folder)
    check_ended(folder)


def test_what_was_read_before_another_change_is_not_written_after_it(folder: Path) -> None:
    listing = read_listing(folder)
    remove_old(folder, rebalance(folder, 3))
    with pytest.raises(GalleryError, match="changed over meanwhile"):
        succeed(folder, listing, listing._replace(shards=("",) * 2), "float16", lambda old, new: 0)
    assert len(contents(folder)) == 12


def test_an_old_listing_costs_no_shards(folder: Path) -> None:
    """Put back from a copy it names what others replaced; those hold what has been written since."""
    copy = (folder / FILE).read_bytes()
    rebalance(folder, 3)
    with ShardedGallery(folder) as gallery:
        gallery.of("new").add_vectors(ids=["new"], vectors=vectors(1), existing="replace")
        newest = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(copy)
    for _ in range(2):
        with pytest.raises(GalleryError, match=r"does not name it; put the newest shards\.json back"):
            rebalance(folder, 4)
        with ShardedGallery(folder) as gallery, pytest.raises(GalleryError, match="took its place"):
            gallery.shards[0].compact()
    (folder / FILE).write_bytes(newest)
    remove_old(folder, rebalance(folder, 4))
    assert len(contents(folder)) == 13
    check_ended(folder)


def test_what_was_begun_is_damaged_or_something_else(folder: Path) -> None:
    (folder / NEXT).write_bytes(b"[" * 5000)
    moved_on(folder)
    check_ended(folder)
    listing = read_listing(folder)
    listing.write(folder, NEXT)  # names the shards themselves
    wanted = listing._replace(shards=("",) * 3)
    with pytest.raises(GalleryError, match="hold 0 items"):
        succeed(folder, listing, wanted, "float16", lambda old, new: 0, resume=True)
    begun = read_listing(folder, NEXT).shards
    assert not set(begun) & set(listing.shards)
    shutil.rmtree(folder / begun[0] / "rows")
    with pytest.raises(GalleryError, match=r"begun by a run before.* remove .*next\.json"):
        succeed(folder, listing, wanted, "float16", lambda old, new: 0, resume=True)
    moved_on(folder)
    check_ended(folder)


@pytest.mark.parametrize("wrong", [[""], ["."], [".."], ["../s"], [None], "0000.gallery", ["a/b"], ["x\n"]])
def test_only_old_shards_are_removed(folder: Path, wrong: Any) -> None:
    with pytest.raises(UsageError):
        remove_old(folder, wrong)
    assert len(contents(folder)) == 12


def test_what_is_no_old_shard_stays(folder: Path, tmp_path: Path) -> None:
    filled(folder / "mine.gallery", 3).close()
    with pytest.raises(GalleryError, match="no other shards took its place"):
        remove_old(folder, ["mine.gallery"])
    old = rebalance(folder, 3)
    (folder / old[0]).rename(tmp_path / "elsewhere")
    (folder / old[0]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GalleryError, match="is a link"):
        remove_old(folder, old)
    (folder / old[0]).unlink()
    with Gallery.open(folder / old[1]) as held:
        remove_old(folder, old)  # the one that is gone is no error
        with pytest.raises(GalleryError, match="moved or removed"):
            held.add_vectors(ids=["late"], vectors=vectors(1))
    assert (tmp_path / "elsewhere").is_dir() and len(contents(folder)) == 12


def test_a_follower_outlives_its_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="no sharded gallery"):
        follow_folder(tmp_path / "nothing")
    with follow_folder(folder, every=0) as searcher:
        listed = (folder / FILE).read_bytes()
        for content in (None, b"{", listed.replace(b'"version": 1', b'"version": 9')):
            (folder / FILE).unlink(missing_ok=True)
            if content is not None:
                (folder / FILE).write_bytes(content)
            (hits,) = searcher.search_vectors(vectors(1), k=12)
            assert len(hits) == 12 and searcher.behind is not None and searcher.changes == 0
        (folder / FILE).write_bytes(listed)
        searcher.search_vectors(vectors(1))
        assert searcher.behind is None


def test_a_follower_excludes_what_it_is_told(folder: Path) -> None:
    """One id was taken for its letters, and nothing was left out; what is no list was a TypeError."""
    with follow_folder(folder, every=0) as searcher:
        ways: list[Callable[[Any], Any]] = [
            lambda exclude: searcher.search_vectors(vectors(1), k=12, exclude=exclude)[0],
            lambda exclude: searcher.query("none.png", "is red", exclude=exclude),
            lambda exclude: searcher.query_batch([], [], exclude=exclude),
            lambda exclude: searcher.query_batch([], [], 10, None, exclude),
        ]
        for ask in ways:
            for wrong in ("i3", b"i3", 5, [3]):
                with pytest.raises(UsageError, match="exclude"):
                    ask(wrong)
        assert "i3" not in [hit.id for hit in ways[0](item for item in ["i3", "nobody"])]


def test_what_was_opened_in_vain_is_not_kept(folder: Path) -> None:
    class Model:
        """Large, and the gallery turns out to be of another."""

    tried: list[weakref.ref[Model]] = []

    def opened() -> ShardedSearcher:
        model = Model()
        if not tried:
            tried.append(weakref.ref(model))
            return ShardedSearcher(None, folder)
        tried.append(weakref.ref(model))
        try:
            raise OSError(2, "nothing")
        except OSError as error:
            raise GalleryError("of another bundle") from error

    with FollowingSearcher(lambda: len(tried), opened, every=0) as searcher:
        searcher.current(now=True)
        assert str(searcher.behind) == "of another bundle"
        assert len(tried) == 2 and tried[-1]() is None


def test_a_query_keeps_its_version_open(folder: Path) -> None:
    """However many take its place meanwhile; it is closed when the query ends, and nothing is kept."""
    with follow_folder(folder, every=0) as searcher:
        asked, go_on, found = threading.Event(), threading.Event(), []

        def slowly(one: Any) -> Any:
            asked.set()
            assert go_on.wait(120)
            return one.search_vectors(vectors(1), k=12)

        thread = threading.Thread(target=lambda: found.append(searcher._asked(slowly)))
        thread.start()
        assert asked.wait(120)
        first = searcher.current()
        for _ in range(3):
            listing = read_listing(folder)
            listing.write(folder)  # another file that says the same
            searcher.current()
        assert searcher.changes == 3 and "closed" not in repr(first)
        go_on.set()
        thread.join()
        assert sorted(hit.id for hit in found[0][0]) == sorted(names(12)) and "closed" in repr(first)
        assert not searcher._asking and not searcher._ended


def asked_elsewhere(searcher: FollowingSearcher) -> list[str]:
    """All ids, as another thread is told them; none where it waits for ever."""
    found: list[str] = []

    def ask() -> None:
        found.extend(sorted(hit.id for hit in searcher.search_vectors(vectors(1), k=12)[0]))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(120)
    return found


@pytest.mark.parametrize("changes", [False, True])
def test_an_interrupt_anywhere_lets_a_follower_go_on(folder: Path, changes: bool) -> None:
    """While it looks for another version, goes over to one and asks; and nothing is kept of the question."""
    expected = sorted(names(12))
    with follow_folder(folder, every=0) as searcher:
        number, fired = 0, True
        while fired:
            number += 9 if changes else 1
            if changes:
                read_listing(folder).write(folder)  # another file that says the same
            bomb = Bomb(number, only=("following.py",))
            with suppress(Interrupt):
                bomb(lambda: searcher._asked(lambda one: len(one)))
            fired = bomb.fired
            assert asked_elsewhere(searcher) == expected and searcher.behind is None
            assert searcher.current(now=True) is searcher.current()
        assert number > 60
        assert all(not claim.held for claim, _ in searcher._asking)


def test_a_follower_answers_in_a_child_that_is_forked_while_it_looks(folder: Path) -> None:
    looking, go_on, first = threading.Event(), threading.Event(), follow_folder(folder).current()

    def version() -> int:
        if threading.current_thread() is not threading.main_thread():
            looking.set()
            assert go_on.wait(120)
        return 1

    with FollowingSearcher(version, lambda: first, every=0) as searcher:
        other = threading.Thread(target=searcher.current)
        other.start()
        assert looking.wait(120)
        child = os.fork()
        if not child:
            os._exit(0 if len(searcher.current(now=True)) == 12 else 1)
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        other.join()


def test_ids_that_are_no_unicode_are_nowhere(folder: Path) -> None:
    assert 0 <= shard_of("\ud800", 7) < 7
    with ShardedGallery(folder) as gallery:
        for wrong in ("\ud800", 5, None, ""):
            with pytest.raises(GalleryError, match="an id is"):
                gallery.of(wrong)  # type: ignore[arg-type]


def test_listings_that_cannot_be_read(tmp_path: Path) -> None:
    for kind in ("fifo", "loop", "zero", "folder", "long"):
        place = tmp_path / kind
        place.mkdir()
        if kind == "fifo":
            os.mkfifo(place / FILE)
        elif kind == "folder":
            (place / FILE).mkdir()
        elif kind in ("loop", "zero"):
            (place / FILE).symlink_to({"loop": FILE, "zero": "/dev/zero"}[kind])
        elif kind == "long":
            place = place / ("x" * 300)
        with pytest.raises(GalleryError) as told:
            read_listing(place)
        assert len(str(told.value)) < 1000
    with ShardedGallery.create(tmp_path / "s", 1, dimension=DIM, bundle="a.cir") as gallery:
        assert gallery.listing.bundle == str(Path.cwd() / "a.cir")
    said = json.loads((tmp_path / "s" / FILE).read_text())
    for wrong in ("", "\0", "x" * 100_000, 5, None):
        (tmp_path / "s" / FILE).write_text(json.dumps({**said, "bundle": wrong}))
        with pytest.raises(GalleryError, match="bundle is") as told:
            read_listing(tmp_path / "s")
        assert len(str(told.value)) < 1000
    (tmp_path / "s" / FILE).write_text(json.dumps(said))
    listed = (tmp_path / "s" / FILE).read_text()
    for depth in (200, 900, 960, 990, 5000):
        (tmp_path / "s" / FILE).write_text(listed.replace('"0000.gallery"', "[" * depth + "]" * depth))
        with pytest.raises(GalleryError):
            read_listing(tmp_path / "s")
