"""A program outlives the head of its cluster: it leaves before Ray ends it. Without Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cir_infer.errors import ShardError
from cir_infer.shards import ray_head
from cir_infer.shards.ray_head import Membership, check_head, head_of
from tests.gallery.interrupts import Bomb, Interrupt


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr(ray_head, "_LOOK", 0.01)
    monkeypatch.setattr(ray_head, "_GONE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def test_a_head_that_is_gone_is_left_when_nothing_is_asked_any_more(head: socket.socket) -> None:
    place, left, asking, go_on = head.getsockname(), threading.Event(), threading.Event(), threading.Event()
    member = Membership(place, left.set)
    member.check()

    def ask() -> None:
        with member.call():
            asking.set()
            assert go_on.wait(120)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asking.wait(120) and member.gone is None
    head.close()
    while member.gone is None:
        assert not left.is_set()
    with pytest.raises(ShardError, match=r"head of Ray's cluster.*nothing of them is lost"):
        member.check_left()
    with pytest.raises(ShardError), member.call():
        pass
    assert not left.wait(0.2)  # somebody waits for an answer still
    go_on.set()
    assert left.wait(120)
    thread.join()


def test_an_interrupt_anywhere_in_a_call_keeps_nobody_waiting(head: socket.socket) -> None:
    left = threading.Event()
    member = Membership(head.getsockname(), left.set)

    def call() -> None:
        with member.call():
            pass

    number, fired = 0, True
    while fired:
        number += 1
        bomb = Bomb(number, only=("ray_head.py",))
        with suppress(Interrupt):
            bomb(call)
        fired = bomb.fired
    call()
    assert number > 20 and not any(claim.held for claim in member._calls)
    head.close()
    assert left.wait(120)


def test_a_head_that_takes_connections_is_there(head: socket.socket) -> None:
    left = threading.Event()
    member = Membership(head.getsockname(), left.set)
    assert not left.wait(0.3) and member.gone is None
    member.end()
    head.close()
    assert not left.wait(0.3)
    with pytest.raises(ShardError, match="is not there"):
        member.check()


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "x" * 300, "a..b"])
def test_no_head(host: str) -> None:
    for port in (1, 99_999):
        with pytest.raises(ShardError, match="is not there") as told:
            check_head((host, port))
        assert len(str(told.value)) < 1000


def test_where_an_address_leads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert head_of("10.0.0.7:6379") == ("10.0.0.7", 6379) and head_of("[::1]:6379") == ("::1", 6379)
    for other in ("local", "ray://10.0.0.7:10001", "10.0.0.7", ""):
        assert head_of(other) is None
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert head_of("auto") is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.8:6380\n")
    assert head_of("auto") == ("10.0.0.8", 6380)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:1")
    assert head_of("auto") == ("10.0.0.9", 1)
