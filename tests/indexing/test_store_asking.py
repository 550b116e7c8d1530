"""A store decides neither how long it is listened to nor what that takes, nor what is left of it."""

from __future__ import annotations

import io
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
from cir_infer.errors import DatasetError
from cir_infer.indexing.sources import open_source
from cir_infer.inputs import remote, store_asking
from cir_infer.inputs.remote import listed, opened_remote, read_remote, remote_status
from tests.bundles import write_tiny_bundle
from tests.indexing.object_store import TELLS_ITS_CHILD, Store, served

pytest.importorskip("pyarrow")


@pytest.fixture
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, served(patch, "shop") as there:
        for name in "abcd":
            there.put(f"photos/{name}.png", os.urandom(2000))
        remote.only(None)
        yield there


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for question in store_asking._SECONDS:
        monkeypatch.setitem(store_asking._SECONDS, question, 1.0)
    monkeypatch.setattr(store_asking, "_SLOWEST", 1 << 20)


@pytest.mark.usefixtures("hasty")
def test_a_listing_without_an_end(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The continuation is always the same, so pyarrow asks for ever."""
    store.endless = True
    with pytest.raises(DatasetError, match=r"cannot be listed .*no full answer within 1 s; does it say"):
        list(open_source("s3://shop/photos").items())
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    assert index_main([str(bundle), "s3://shop/photos", "--gallery", str(tmp_path / "g")]) == 1
    assert "without end that there is more" in capsys.readouterr().err
    time.sleep(0.2)  # what asked is gone, and asks no more
    asked = len(store.requests)
    time.sleep(0.2)
    assert len(store.requests) == asked
    store.endless = False
    assert len(listed("s3://shop/photos")) == 4


def test_a_listing_of_gigabytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.endless, store.page = True, 1000
    for number in range(1001):
        store.put(f"many/{number}-{'x' * 200}.png", b"")
    monkeypatch.setattr(store_asking, "_MEMORY", 16 << 20)
    with pytest.raises(OSError, match="takes more than 16 MiB; does it"):
        listed("s3://shop/many")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "read",
    [
        lambda address: read_remote(address, 0, None, 1 << 20),
        lambda address: read_remote(address, 5, 1000, 1 << 20),
        lambda address: opened_remote(address).read(),
    ],
    ids=["whole", "a part", "opened"],
)
def test_bytes_that_trickle(store: Store, read: Callable[[str], bytes]) -> None:
    store.lazy = True
    with pytest.raises(OSError, match="no full answer within 1 s; see to the network"):
        read("s3://shop/photos/a.png")
    store.lazy = False
    assert read("s3://shop/photos/a.png") in store.objects["photos/a.png"][0]


def test_what_is_read_in_parts(store: Store) -> None:
    data = os.urandom(3 << 20)
    store.put("large", data)
    file = opened_remote("s3://shop/large")
    assert file.read(10) == data[:10] and file.seek(-5, io.SEEK_END) == len(data) - 5
    assert file.read() == data[-5:] and file.seek(1 << 20) and file.read() == data[1 << 20 :]
    assert len([1 for method, _ in store.requests if method == "GET"]) == 3
    file.close()
    assert len(store_asking._idle.get()) == 1  # left to the next


def test_a_process_that_dies_costs_one_answer(store: Store) -> None:
    assert remote_status("s3://shop/photos/a.png").st_size == 2000
    (child,) = store_asking._idle.get()
    child._process.kill()
    with pytest.raises(OSError, match=r"ended with code -9|[Bb]roken pipe"):
        remote_status("s3://shop/photos/a.png")
    assert remote_status("s3://shop/photos/a.png").st_size == 2000


def test_threads_share_a_few_processes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    make = store_asking._Child.__init__
    monkeypatch.setattr(store_asking, "_AT_ONCE", 2)
    monkeypatch.setattr(store_asking._Child, "__init__", lambda self: (started.append(1), make(self))[1])
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_remote("s3://shop/photos/a.png", 0, None, 4000)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store.objects["photos/a.png"][0]] * 6 and len(started) <= 2


_LISTS = TELLS_ITS_CHILD.format(asks='from cir_infer.inputs.remote import listed; listed("s3://shop/photos")')


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_whoever_asks_can_be_ended(store: Store, sign: int, code: int) -> None:
    """Ctrl-C is heard while a store goes on, and what asked it does not outlive its parent."""
    store.endless = True
    parent = subprocess.Popen([sys.executable, "-c", _LISTS], stdout=subprocess.PIPE, env={**os.environ})
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        while len(store.requests) < 5:
            time.sleep(0.01)
        parent.send_signal(sign)
        assert parent.wait(60) == code
    until = time.monotonic() + 60
    while _lives(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_answer_is_pickled(store: Store) -> None:
    """What the process says is JSON, whatever names a store has."""
    odd = "photos/\u2028 line\r\n'\".png"
    store.put(odd, b"x")
    names = {entry.name for entry in listed("s3://shop/photos")}
    assert len(names) == 5 and json.dumps(sorted(names))
