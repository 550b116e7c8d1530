"""Of a store several things are asked at once; what each answer is does not depend on the others.

Where a test says that questions are asked at once the store answers none before all have come.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cir_infer.commands.index import main as index_main
from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.inputs import remote, store_asking
from cir_infer.inputs.locations import Location, read_each
from cir_infer.inputs.remote import Ahead, opened_remote, read_remote
from tests.bundles import write_tiny_bundle
from tests.indexing.object_store import LONG, TELLS_ITS_CHILD, Store, Together, eight_photos
from tests.indexing.support import png

pytest.importorskip("pyarrow")


@pytest.fixture
def store() -> Iterator[Store]:
    with eight_photos() as there:
        yield there


def fetched(method: str, key: str) -> bool:
    return method == "GET" and key.endswith(".png")


def places(*names: object) -> list[Location]:
    return [Location(f"s3://shop/photos/{name}.png") for name in names]


def test_objects_are_fetched_at_once_and_come_in_order(store: Store) -> None:
    store.before = together = Together(8, fetched, order=-1)
    assert list(read_each(places(*range(8)))) == [png(number) for number in range(8)]
    assert len(together.came) == 8 and together.gone == sorted(together.came, reverse=True)
    assert len(store_asking._idle.get()) == 1  # one process asked, and was left to the next


def test_no_more_is_asked_at_once_than_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_asking, "AHEAD", 3)
    begun, gone, most, changed = 0, 0, 0, threading.Condition()

    def before(method: str, key: str) -> None:
        nonlocal begun, gone, most
        with changed:
            if method == "HEAD":  # an object's size is asked for, then its bytes
                begun += 1
                most = max(most, begun - gone)
            else:
                changed.wait_for(lambda: begun - gone > 3, 0.3)  # if more would come
                gone += 1
            changed.notify_all()

    store.before = before
    assert list(read_each(places(*range(8)))) == [png(number) for number in range(8)]
    assert most <= 3


@pytest.mark.parametrize("wrong", ["missing", "forbidden", "broken", "short"])
def test_what_is_wrong_with_one_is_its_own(store: Store, wrong: str) -> None:
    """The third of eight cannot be read."""
    asked = places(*range(8))
    if wrong == "missing":
        del store.objects["photos/2.png"]
    elif wrong == "forbidden":
        store.forbidden = {"photos/2.png"}
    elif wrong == "broken":
        store.before = lambda method, key: 400 if key == "photos/2.png" else None
    else:
        asked[2] = Location("s3://shop/photos/2.png", 10, 1 << 20)
    found = list(read_each(asked))
    assert [one for one in found if isinstance(one, bytes)] == [png(n) for n in range(8) if n != 2]
    assert isinstance(found[2], CirError) and "s3://shop/photos/2.png" in str(found[2])
    with pytest.raises(CirError) as alone:
        asked[2].read()
    assert str(alone.value) == str(found[2])


@pytest.mark.parametrize(
    "read",
    [
        lambda address: read_remote(address, 0, None, 1 << 20),
        lambda address: read_remote(address, 0, 50_000, 1 << 20),
        lambda address: opened_remote(address).read(),
    ],
    ids=["whole", "a part", "opened"],
)
def test_an_object_that_becomes_shorter(store: Store, read: Callable[[str], bytes]) -> None:
    """Between its size and its bytes: what pyarrow gives for those that are missing is of no object."""
    data = os.urandom(50_000)
    for left in (0, 1, 20_000, len(data) - 1):
        store.put("photos/2.png", data)

        def before(method: str, key: str, left: int = left) -> None:
            if fetched(method, key):
                store.put("photos/2.png", data[:left])

        store.before = before
        with pytest.raises(OSError, match="fewer than 50,000 bytes; was the object written meanwhile"):
            read("s3://shop/photos/2.png")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(remote, "_FETCHED", 1000)
    monkeypatch.setattr(remote, "_BUFFER", 100)
    return 1000


def test_an_object_that_is_read_on_is_fetched_in_parts_beside_each_other(
    store: Store, small_blocks: int
) -> None:
    """Of a shard in a store each part was waited for before the next was asked for."""
    data = os.urandom(40 * small_blocks + 7)
    store.put("shard.tar", data)
    lock, here, most = threading.Condition(), 0, 0

    def before(method: str, key: str) -> None:
        nonlocal here, most
        if method == "GET":
            with lock:
                here += 1
                most = max(most, here)
                lock.notify_all()
                lock.wait_for(lambda: most >= 8, 0.2)
                here -= 1

    store.before = before
    with opened_remote("s3://shop/shard.tar") as file:
        assert file.read() == data
    assert most == remote._BLOCKS_AHEAD == 8
    assert len(store_asking._idle.get()) == 1


def test_who_jumps_about_in_an_object_gets_what_is_there(store: Store, small_blocks: int) -> None:
    data = os.urandom(60 * small_blocks + 123)
    store.put("shard.tar", data)
    rng = np.random.default_rng(0)
    with opened_remote("s3://shop/shard.tar") as file:
        at = 0
        for _ in range(300):
            kind = rng.integers(4)
            at = file.tell() if kind < 2 else int(rng.integers(len(data) + 50))
            at = min(at + int(rng.integers(2500)), len(data)) if kind == 1 else at
            size = int(rng.integers(3 * small_blocks))
            assert file.seek(at) == at
            assert file.read(size) == data[at : at + size]
        assert file.seek(0, os.SEEK_END) == len(data) and file.read(1) == b""
    store.requests.clear()
    with opened_remote("s3://shop/shard.tar") as file:
        for number in (0, 30, 10, 50):
            file.seek(number * small_blocks)
            assert file.read(5) == data[number * small_blocks :][:5]
    assert sum(method == "GET" for method, _ in store.requests) == 4, "a jump fetches no more than it reads"


def test_a_part_that_cannot_be_read_is_told_when_it_is_come_to(store: Store, small_blocks: int) -> None:
    data = os.urandom(20 * small_blocks)
    store.put("shard.tar", data)
    with opened_remote("s3://shop/shard.tar") as file:
        assert file.read(3 * small_blocks) == data[: 3 * small_blocks]
        store.before = lambda method, key: 403 if method == "GET" else None
        with pytest.raises(OSError):
            file.read()
        store.before = lambda method, key: None
        file.seek(11 * small_blocks)
        assert file.read(5) == data[11 * small_blocks :][:5]
    assert read_remote("s3://shop/photos/1.png", 0, None, 1 << 20) == png(1)


def test_any_last_byte(store: Store) -> None:
    """By which it is seen whether all bytes came."""
    for last in range(256):
        store.put(f"photos/{last}.png", bytes([1, 2, last]))
    found = list(read_each(places(*range(256))))
    assert found == [bytes([1, 2, last]) for last in range(256)]


def test_a_batch_of_all_kinds_of_places(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(9))
    here, there = Location(str(tmp_path / "a.png")), places(1, 2)
    found = list(read_each([here, there[0], Location("s3://me:hidden@shop/a.png"), here, there[1]]))
    assert [found[0], found[1], found[3], found[4]] == [png(9), png(1), png(9), png(2)]
    assert isinstance(found[2], CirError) and "hidden" not in str(found[2])
    assert list(read_each([])) == []


def test_one_of_many_does_not_come(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said as if it had been asked alone, the others come, and what hangs is ended."""
    held = threading.Event()

    def before(method: str, key: str) -> None:
        if key == "photos/2.png":
            held.wait(LONG)

    store.before = before
    answers = []
    with Ahead() as ahead:
        for number, place in enumerate(places(*range(8))):
            with monkeypatch.context() as patch:
                if number == 2:
                    patch.setitem(store_asking._SECONDS, "read", 1.0)
                answers.append(ahead.read(place.path, 0, None, 1 << 20))
        child = ahead._line._child
        assert child is not None
        for number, answer in enumerate(answers):
            if number == 2:
                with pytest.raises(OSError, match="no full answer within 1 s; see to the network"):
                    answer()
            else:
                assert answer() == png(number)
        assert child._process.poll() is not None and not store_asking._idle.get()
        held.set()
        assert ahead.read(places(2)[0].path, 0, None, 1 << 20)() == png(2)


def test_a_process_that_one_object_brings_down(store: Store) -> None:
    """What else it was asked is asked again; only the object that does it each time is to blame."""
    held = Together(8, fetched)

    def before(method: str, key: str) -> None:
        child = line._child
        if fetched(method, key) and key == "photos/2.png" and child is not None:
            child._process.kill()

    with Ahead() as ahead:
        line = ahead._line
        store.before = before
        answers = [ahead.read(place.path, 0, None, 1 << 20) for place in places(*range(8))]
        for number, answer in enumerate(answers):
            if number == 2:
                with pytest.raises(OSError, match="ended with code -9"):
                    answer()
            else:
                assert answer() == png(number)
        store.before = held  # and then several are asked at once again
        answers = [ahead.read(place.path, 0, None, 1 << 20) for place in places(*range(8))]
        assert [answer() for answer in answers] == [png(number) for number in range(8)]


def test_what_waits_for_its_turn_stands_nowhere(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large objects are, few bytes of them are held before they are taken."""
    size, room, count = 1 << 20, 4, 16
    monkeypatch.setattr(store_asking, "_ROOM", room * size)
    bodies = [os.urandom(16) * (size // 16) for _ in range(count)]
    for number, body in enumerate(bodies):
        store.put(f"photos/{number}.png", body)
    taken, most, seen, changed = 0, 0, 0, threading.Condition()

    def before(method: str, key: str) -> None:
        nonlocal seen, most
        with changed:
            seen += method == "HEAD"
            if method == "GET":
                begun = sum(fetched(*one) for one in store.requests)
                most = max(most, begun - taken)
            changed.notify_all()

    store.before = before
    with Ahead() as ahead:
        answers = [ahead.read(place.path, 0, None, size) for place in places(*range(count))]
        with changed:  # each was asked for its size, and as many as there is room for were fetched
            assert changed.wait_for(lambda: seen == count and most >= room, LONG)
        for body, answer in zip(bodies, answers, strict=True):
            with changed:
                taken += 1
            assert answer() == body
    assert most <= room + 2  # one is the next, one is in the pipe
    store.put("photos/0.png", bytes(3 * room * size))
    (large, small) = read_each(places(0, 1))  # larger than all the room: it has its turn
    assert isinstance(large, bytes) and len(large) == 3 * room * size and small == bodies[1]


def test_a_large_object_among_others_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cir_infer.inputs.locations.MAX_IMAGE_BYTES", 10_000)
    store.put("photos/2.png", bytes(10_001))
    found = list(read_each(places(1, 2, 3)))
    assert [found[0], found[2]] == [png(1), png(3)] and "at most 10,000 are read" in str(found[1])
    assert ("GET", "photos/2.png") not in store.requests


def test_whoever_is_slow_is_not_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for room, or to be taken, is not late."""
    monkeypatch.setattr(store_asking, "_ROOM", 1)
    monkeypatch.setitem(store_asking._SECONDS, "read", 5.0)
    store.put("photos/0.png", bytes(1 << 20))  # more than a pipe holds
    with Ahead() as ahead:
        answers = [ahead.read(place.path, 0, None, 1 << 20) for place in places(*range(8))]
        time.sleep(5.5)
        assert [len(answer()) for answer in answers] == [1 << 20, *(len(png(n)) for n in range(1, 8))]


def test_errors_that_are_kept_keep_nobody_waiting(store: Store) -> None:
    kept: list[OSError] = []

    def ask() -> None:
        for _ in range(store_asking._AT_ONCE + 1):
            try:
                read_remote("s3://shop/photos/none.png", 0, None, 4000)
            except OSError as error:
                kept.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LONG)
    said = len(kept)
    kept.clear()
    assert said == store_asking._AT_ONCE + 1


# ---- from the outside

_READS = TELLS_ITS_CHILD.format(
    asks="""\
from cir_infer.inputs.locations import Location, read_each
    list(read_each([Location(f"s3://shop/photos/{number}.png") for number in range(8)]))"""
)


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_whoever_reads_ahead_can_be_ended(store: Store, sign: int, code: int) -> None:
    """While eight objects are waited for; nothing of it is left."""
    held, came = threading.Event(), threading.Semaphore(0)

    def before(method: str, key: str) -> None:
        if fetched(method, key):
            came.release()
            held.wait(LONG)

    store.before = before
    parent = subprocess.Popen([sys.executable, "-c", _READS], stdout=subprocess.PIPE, env={**os.environ})
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        for _ in range(8):
            assert came.acquire(timeout=LONG)
        parent.send_signal(sign)
        assert parent.wait(LONG) == code
    until = time.monotonic() + LONG
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
    held.set()


def test_a_run_is_interrupted_and_goes_on(store: Store, tmp_path: Path) -> None:
    """Ctrl-C while the store does not answer keeps what was encoded; the next run does the rest."""
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    held, came = threading.Event(), threading.Event()

    def before(method: str, key: str) -> None:
        if fetched(method, key) and key >= "photos/6":
            came.set()
            held.wait(LONG)

    store.before = before
    place = tmp_path / "g"
    arguments = [
        str(bundle),
        "s3://shop/photos",
        "--gallery",
        str(place),
        "--batch-size",
        "2",
        "--workers",
        "1",
    ]
    program = str(Path(sys.executable).with_name("cir-index"))
    run = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, env={**os.environ})
    assert came.wait(LONG)
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=LONG) is not None and run.returncode == 130
    held.set()
    with Gallery.open(place, read_only=True) as gallery:
        assert 0 < len(gallery) < 8
    assert index_main(arguments) == 0
    with Gallery.open(place, read_only=True) as gallery:
        assert sorted(gallery.ids) == [f"{number}.png" for number in range(8)]


def test_a_store_answers_an_index_in_any_order(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken ones are told, the others have the rows of their own pictures."""
    store.put("photos/3.png", b"")
    store.put("photos/5.png", png(5)[:100])
    store.before = Together(7, fetched, order=-1)  # of what is empty nothing is fetched
    arguments = ["s3://shop/photos", "--gallery", str(tmp_path / "g"), "--workers", "1", "--json"]
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    assert index_main([str(bundle), *arguments]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["added"], said["broken"]) == (6, 2)
    broken = [json.loads(line) for line in Path(said["broken_list"]).read_text().splitlines()]
    assert {one["id"] for one in broken} == {"3.png", "5.png"}


def test_waiting_for_a_store_is_not_hanging(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder has the time that a store may take, and so it is the store that is said to hang."""
    monkeypatch.setattr("cir_infer.indexing.decoding.PATIENCE", 0.0)
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    place = tmp_path / "g"
    assert index_main([str(bundle), "s3://shop/photos", "--gallery", str(place), "--workers", "1"]) == 0
    with Gallery.open(place, read_only=True) as gallery:
        assert len(gallery) == 8
