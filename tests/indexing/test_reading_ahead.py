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

import pytest

from cir_infer.commands.index import main as index_main
from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.indexing import stores
from cir_infer.indexing.items import Item
from cir_infer.indexing.sources import open_source
from cir_infer.inputs import remote, store_asking
from cir_infer.inputs.locations import Location, are_gone, read_each
from cir_infer.inputs.remote import Ahead, read_remote, remote_status
from cir_infer.inputs.store_asking import AHEAD
from tests.bundles import write_tiny_bundle
from tests.indexing.object_store import Store, served
from tests.indexing.support import png

pytest.importorskip("pyarrow")

LONG = 30.0
"""Seconds after which what does not come will not."""


@pytest.fixture
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, served(patch, "shop") as there:
        for number in range(8):
            there.put(f"photos/{number}.png", png(number))
        remote.only(None)
        yield there


class Together:
    """Holds requests back until as many are there.

    Args:
        count: of them.
        wanted: says of a method and key whether it is one of them.
        order: in which they are let go, 1 for that of their coming, -1 for the other.
    """

    def __init__(self, count: int, wanted: Callable[[str, str], bool], order: int = 1) -> None:
        self.count, self.wanted, self.order = count, wanted, order
        self.came: list[str] = []
        self.gone: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, method: str, key: str) -> None:
        if not self.wanted(method, key):
            return
        with self._changed:
            self.came.append(key)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self.came) >= self.count, LONG)
            turns = sorted(self.came, reverse=self.order < 0)
            self._changed.wait_for(lambda: turns[len(self.gone) % len(turns)] == key, LONG)
            self.gone.append(key)
            self._changed.notify_all()


def fetched(method: str, key: str) -> bool:
    return method == "GET" and key.endswith(".png")


def places(*names: object) -> list[Location]:
    return [Location(f"s3://shop/photos/{name}.png") for name in names]


def test_objects_are_fetched_at_once_and_come_in_order(store: Store) -> None:
    store.before = together = Together(8, fetched, order=-1)
    assert list(read_each(places(*range(8)))) == [png(number) for number in range(8)]
    assert len(together.came) == 8 and together.gone == sorted(together.came, reverse=True)
    assert len(store_asking._idle.get()) == 1  # one process asked, and was left to the next


def test_no_more_is_asked_at_once_than_is_said(store: Store) -> None:
    for number in range(3 * AHEAD):
        store.put(f"photos/{number}.png", png(1))
    now, most, changed = 0, 0, threading.Condition()

    def before(method: str, key: str) -> None:
        nonlocal now, most
        if method == "HEAD":
            with changed:
                now += 1
                most = max(most, now)
        else:
            with changed:
                now -= 1

    store.before = before
    assert list(read_each(places(*range(3 * AHEAD)))) == [png(1)] * (3 * AHEAD)
    assert most <= AHEAD


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
    kept = []
    for _ in range(store_asking._AT_ONCE + 1):
        with pytest.raises(OSError) as raised:
            read_remote("s3://shop/photos/none.png", 0, None, 4000)
        kept.append(raised.value)
    assert remote_status("s3://shop/photos/1.png").st_size == len(png(1))


# ---- folders


def ids(address: str) -> list[str]:
    return [one.id for one in open_source(address).items() if isinstance(one, Item)]


def test_folders_are_listed_at_once(store: Store) -> None:
    expected = []
    for number in range(6):
        for name in ("a.png", "deep/b.png", "deep/c"):
            store.put(f"shelf/{number}/{name}", png(number))
            expected.append(f"{number}/{name}")
    store.before = together = Together(6, lambda method, key: key.count("/") == 2 and key.endswith("/"))
    assert ids("s3://shop/shelf") == expected
    assert together.gone == [f"shelf/{number}/" for number in range(6)]


def test_what_has_no_ending_is_looked_into_at_once(store: Store) -> None:
    for number in range(8):
        store.put(f"plain/{number}", png(number) if number % 2 else b"a text that is long enough")
    source = open_source("s3://shop/plain")
    store.before = together = Together(8, lambda method, key: method == "GET" and len(key) > len("plain/"))
    found = [one.id for one in source.items()]
    assert found == ["1", "3", "5", "7"] and source.survey.left_out == {"without an ending": 4}
    assert len(together.came) == 8


def test_of_large_folders_one_is_listed_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was listed ahead and is large is listed again when it is come to, and then no more ahead."""
    monkeypatch.setattr(stores, "_ONE_ANSWER", 4)
    expected = []
    for folder in range(3 * AHEAD):
        for number in range(5):
            store.put(f"shelf/{folder:03}/{number}.png", png(number))
            expected.append(f"{folder:03}/{number}.png")
    store.page = 1000
    found = []
    for one in open_source("s3://shop/shelf").items():
        found.append(one.id)
        listed = {key for _, key in store.requests if key.endswith("/") and key.count("/") == 2}
        assert len(listed) <= AHEAD + 2 + len({name.partition("/")[0] for name in found})
    assert found == expected


def test_one_listing_without_end_among_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the memory of all; asked alone each says what it is."""
    monkeypatch.setattr(store_asking, "_MEMORY", 16 << 20)
    for folder in "abcd":
        for number in range(1001 if folder == "b" else 2):
            store.put(f"many/{folder}/{number}-{'x' * 200}.png", b"")
    store.page, store.endless = 1000, "many/b/"
    found = list(open_source("s3://shop/many").items())
    assert [one.id for one in found if isinstance(one, Item)] == [
        f"{folder}/{number}-{'x' * 200}.png" for folder in "acd" for number in range(2)
    ]
    (broken,) = (one for one in found if not isinstance(one, Item))
    assert broken.id == "b" and "takes more than 16 MiB; does it say without end" in broken.reason


def test_what_is_gone_is_asked_at_once(store: Store, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"")
    asked = [place.path for place in places(*range(4), "x", "y")]
    del store.objects["photos/3.png"]
    store.before = Together(6, lambda method, key: method == "HEAD")
    gone = list(are_gone([str(tmp_path / "here.png"), *asked, str(tmp_path / "none.png")]))
    assert gone == [False, False, False, False, True, True, True, True]


# ---- from the outside

_READS = """\
import sys
from cir_infer.inputs import store_asking
from cir_infer.inputs.locations import Location, read_each
start = store_asking.start_child
def told(*given, **more):
    child = start(*given, **more)
    print(child.pid, flush=True)
    return child
store_asking.start_child = told
try:
    list(read_each([Location(f"s3://shop/photos/{number}.png") for number in range(8)]))
except KeyboardInterrupt:
    sys.exit(130)
"""


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
