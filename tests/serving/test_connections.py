"""Both parsers of HTTP: what they read, and what they refuse before anything of ours sees it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from cir_infer.serving import server
from cir_infer.serving.connections import LARGEST_HEAD, make_protocol
from tests.serving.support import Running, running

LINE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module", params=["h11", "httptools"])
def parsed(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Running]:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}, which comes with the extra serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "make_protocol", partial(make_protocol, name=request.param))
        with running(bundle) as found:
            yield found


def said_to(port: int, *parts: bytes) -> bytes:
    """What comes back until the service closes."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while chunk := connection.recv(65536):
                said += chunk
        except (ConnectionError, BrokenPipeError):  # it may have heard enough
            pass
    return said


def test_a_head_in_pieces_and_a_body_in_chunks(parsed: Running) -> None:
    whole = LINE + b"Connection: close\r\n\r\n"
    assert b" 200 " in said_to(parsed.client.port, *(whole[at : at + 5] for at in range(0, len(whole), 5)))
    asked = b'{"item":"sku-1","text":"is red"}'
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in asked)
    answer = said_to(parsed.client.port, head + chunks + b"0\r\nContent-Type: text/plain\r\n\r\n")
    assert b" 200 " in answer, answer[:500]


def test_what_is_no_http_is_told_so_as_everything_else_is(served: Running) -> None:
    pytest.importorskip("httptools", reason="comes with the extra serve")
    for sent in (b"what\r\n\r\n", LINE + b"no header\r\n\r\n"):
        head, _, body = said_to(served.client.port, sent).partition(b"\r\n\r\n")
        told = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        assert head.startswith(b"HTTP/1.1 400 ")
        assert told[b"content-type"] == b"application/problem+json"
        assert told[b"connection"] == b"close"
        assert told[b"x-content-type-options"] == b"nosniff"
        assert json.loads(body)["type"] == "urn:cir-infer:problem:malformed-request"


def test_head_has_the_head_of_get_alone(parsed: Running) -> None:
    got, head = parsed.client("GET", "/v1/items/sku-1"), parsed.client("HEAD", "/v1/items/sku-1")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.body))


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(LINE + b"X: " + b"x" * 65536, id="a value"),
        pytest.param(LINE + b"x" * 65536, id="a name"),
        pytest.param(b"GET /" + b"x" * 65536, id="a path"),
        pytest.param(LINE + b"X: y\r\n" * 20000, id="many headers"),
        pytest.param(
            LINE.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 20000,
            id="behind the body",
        ),
    ],
)
def test_heads_do_not_go_on_for_ever(parsed: Running, endless: bytes) -> None:
    """However much follows, the service closes; else this would send a gigabyte."""
    more, sent = endless[-65536:], 0
    with socket.create_connection(("127.0.0.1", parsed.client.port), 30) as connection:
        try:
            connection.sendall(endless)
            while sent < 1 << 30:
                connection.sendall(more)
                sent += len(more)
        except (ConnectionError, BrokenPipeError):
            pass
    assert sent < 64 << 20
    assert parsed.client("GET", "/healthz").status == 200


def test_a_head_that_is_too_large_is_told_so(parsed: Running) -> None:
    padding = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(1 + LARGEST_HEAD // 1000))
    assert b" 431 " in said_to(parsed.client.port, LINE + padding + b"Connection: close\r\n\r\n")


def test_requests_that_wait_on_one_connection_are_answered_in_order_and_few(parsed: Running) -> None:
    last, missing = LINE + b"Connection: close\r\n\r\n", LINE.replace(b"healthz", b"nowhere")
    few = said_to(parsed.client.port, b"\r\n".join((LINE, missing, last)))
    assert [part[:3] for part in few.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]
    many = said_to(parsed.client.port, (LINE + b"\r\n") * 300 + last)
    assert {part[:3] for part in many.split(b"HTTP/1.1 ")[1:]} <= {b"200", b"400"}
    assert parsed.client("GET", "/healthz").status == 200


class Fed:
    """A connection to whose protocol bytes are given by hand; every search is refused, all else waits."""

    def __init__(self) -> None:
        self.asked = 0

    def refuse(self, method: str, *_: object) -> tuple[int, bytes, bytes] | None:
        if method != "POST":
            return None
        self.asked += 1
        return 503, b"content-length: 10000\r\n", b"x" * 10000

    async def feed(self, data: bytes) -> tuple[bytes, bool, bool]:
        """What it had sent then, and whether the ends of an idle connection and of a slow head were set."""
        import uvicorn
        from uvicorn.server import ServerState

        async def app(scope: object, receive: object, send: object) -> None:
            await asyncio.Event().wait()

        loop = asyncio.get_running_loop()
        config = uvicorn.Config(app, log_config=None, ws="none", lifespan="off")
        state = ServerState()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        kind = make_protocol(20, self.refuse, name="httptools")
        _, protocol = await loop.create_connection(lambda: kind(config, state, {}, loop), sock=ours)
        protocol.data_received(data)
        said = b""
        with theirs, contextlib.suppress(BlockingIOError):
            while chunk := theirs.recv(65536):
                said += chunk
        idle, head = protocol.timeout_keep_alive_task is not None, protocol._head is not None
        protocol.transport.abort()
        await asyncio.sleep(0)
        for task in state.tasks:
            task.cancel()
        return said, idle, head

    def __call__(self, data: bytes) -> tuple[bytes, bool, bool]:
        pytest.importorskip("httptools")
        return asyncio.run(self.feed(data))


ASKED = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{"


def test_who_does_not_read_is_not_refused_into_memory() -> None:
    """Refusals are larger than what they refuse: they wait for the client as other answers do."""
    fed = Fed()
    fed(ASKED * 2000)
    assert 0 < fed.asked < 200


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(
            ASKED.replace(b"/1.1", b"/1.0").replace(b"Host", b"Connection: keep-alive\r\nHost"), id="1.0"
        ),
        pytest.param(ASKED.replace(b"Host", b"Connection: close\r\nHost"), id="close"),
        pytest.param(ASKED.replace(b"Host", b"Expect: 100-continue\r\nHost"), id="expect"),
        pytest.param(ASKED.replace(b"Host", b"Connection: upgrade\r\nUpgrade: h2c\r\nHost"), id="upgrade"),
    ],
)
def test_what_says_more_of_its_connection_is_not_refused_by_it(odd: bytes) -> None:
    fed = Fed()
    fed(odd)
    assert fed.asked == 0


def test_a_request_behind_a_refusal_has_its_own_time() -> None:
    said, idle, head = Fed()(ASKED + LINE + b"\r\n")
    assert said.startswith(b"HTTP/1.1 503 ")
    assert not idle  # it is in work, and neither may cut it off
    assert not head
    assert Fed()(ASKED)[1:] == (True, False)


@pytest.mark.parametrize("rest", [b"P", LINE])
def test_a_head_that_begins_behind_a_refusal_has_to_arrive(rest: bytes) -> None:
    assert Fed()(ASKED + rest)[1:] == (False, True)


def test_a_body_that_was_not_asked_for_is_not_taken_for_a_request(parsed: Running) -> None:
    """Nobody can tell it from the next request, so the answer is the connection's last."""
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    said = said_to(parsed.client.port, head + b"Expect: 100-continue\r\nContent-Length: 60\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 415 ")
    assert b"\r\nconnection: close\r\n" in said.lower()


@pytest.mark.parametrize(
    "length",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding : chunked",
        b"Content-Length: +5",
    ],
)
def test_a_body_of_two_lengths_ends_its_connection(parsed: Running, length: bytes) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n"
    said = said_to(parsed.client.port, head + length + b"\r\n\r\n0\r\n\r\n" + LINE + b"\r\n")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b" 200 " not in said


def pipelined(random: Random) -> tuple[bytes, list[bytes]]:
    """Requests one behind the other, whose bodies look like requests, and the statuses they get."""
    smuggled = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n" * random.randint(0, 3) + b"{"
    said, statuses = b"", []
    for _ in range(random.randint(1, 8)):
        kind = random.choice(["refused", "refused by the guard", "alive", "nowhere", "head"])
        if kind in ("alive", "head", "nowhere"):
            method = b"HEAD" if kind == "head" else b"GET"
            path = b"/nowhere" if kind == "nowhere" else b"/healthz"
            said += method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
            statuses.append(b"404" if kind == "nowhere" else b"200")
            continue
        said += b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        said += b"Origin: http://localhost\r\n" * (kind != "refused")
        if random.random() < 0.5:
            said += b"Content-Length: %d\r\n\r\n" % len(smuggled) + smuggled
        else:
            chunk = b"%x\r\n" % len(smuggled) + smuggled + b"\r\n"
            said += b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\nX: y\r\n\r\n"
        statuses.append(b"503")
    return said + LINE + b"Connection: close\r\n\r\n", [*statuses, b"200"]


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_what_is_refused_leaves_nothing_that_is_taken_for_a_request(
    bundle: Path, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(parser) is None:
        pytest.skip(f"needs {parser}, which comes with the extra serve")
    monkeypatch.setattr(server, "make_protocol", partial(make_protocol, name=parser))
    random = Random(0)
    with running(bundle) as found:
        found.service._in_work = found.service.settings.queue
        for number in range(40):
            said, statuses = pipelined(random)
            cuts = sorted(random.randrange(len(said)) for _ in range(random.randint(0, 4)))
            parts = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
            answered = re.findall(rb"HTTP/1\.1 (\d+) ", said_to(found.client.port, *parts))
            assert answered == statuses, (number, said)
        found.service._in_work = 0


@pytest.mark.parametrize("body", [b"what\r\n", b"1\r\nab\r\n"])
def test_a_refused_request_has_one_answer_whatever_its_body_is(body: bytes) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    said, _, _ = Fed()(head + body + LINE + b"\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+) ", said) == [b"503"]
    # What is no HTTP before there is a request is told so.
    assert re.findall(rb"HTTP/1\.1 (\d+) ", Fed()(ASKED + b"what\r\n\r\n")[0]) == [b"503", b"400"]
