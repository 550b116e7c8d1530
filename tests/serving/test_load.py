"""Many at once: what waits is computed together, too much is refused, what nobody wants is dropped."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cir_infer.serving import batching
from tests.serving.asking import QUERY, Asking, until
from tests.serving.support import Client, Gated, Running, png, running


def waiting(found: Running, count: int) -> Callable[[], bool]:
    return lambda: len(found.service.batcher._waiting) >= count


def slow(found: Running, seconds: float) -> None:
    """Let the service believe that a query takes so long."""
    pace = found.service.batcher.pace
    pace._spent, pace._count = seconds, 1.0


def test_what_waits_is_computed_together(bundle: Path) -> None:
    with running(bundle, max_batch=4) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()  # the first begins at once, alone
        for number in range(6):
            asking.ask(found.client, item=f"sku-{number + 2}")
        until(waiting(found, 6))
        asking.ask(found.client, k=5)  # wants something else
        until(waiting(found, 7))
        searcher.gate.set()
        assert asking.wait() == [200] * 8
        assert searcher.sizes == [1, 4, 2, 1]
        text = found.client("GET", "/metrics").body.decode()
        assert "cir_batch_queries_count 4.0" in text
        assert "cir_batch_queries_sum 8.0" in text


def test_too_many_are_refused_at_once(bundle: Path) -> None:
    with running(bundle, queue=3) as found:
        searcher, asking = Gated.under(found.service), Asking()
        for _ in range(3):
            asking.ask(found.client)
        searcher.arrived.acquire()
        until(lambda: found.service._in_work == 3)
        refused = found.client("POST", "/v1/search", QUERY)
        assert (refused.status, refused.kind) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert found.client("GET", "/healthz").status == 200
        searcher.gate.set()
        assert asking.wait() == [200] * 3
        assert found.client("POST", "/v1/search", QUERY).status == 200
        assert 'cir_refusals_total{reason="overloaded"} 1.0' in found.client("GET", "/metrics").body.decode()


def test_a_batch_is_let_in_where_one_query_is(bundle: Path) -> None:
    """Else it would never be while single ones take each place that comes free."""
    with running(bundle, queue=4, max_batch=4) as found:
        searcher, asking = Gated.under(found.service), Asking()
        for _ in range(3):
            asking.ask(found.client)
        searcher.arrived.acquire()
        until(lambda: found.service._in_work == 3)
        told: list[Any] = []
        batch = threading.Thread(
            target=lambda: told.append(found.client("POST", "/v1/search/batch", {"queries": [QUERY] * 4}))
        )
        batch.start()
        until(lambda: found.service._in_work == 7)
        assert found.client("POST", "/v1/search", QUERY).status == 503
        assert found.client("POST", "/v1/search/batch", {"queries": [QUERY]}).status == 503
        searcher.gate.set()
        batch.join(120)
        assert [answer["hits"][0]["rank"] for answer in told[0].json["answers"]] == [1] * 4
        assert asking.wait() == [200] * 3


def test_what_would_wait_too_long_is_refused_at_once(bundle: Path) -> None:
    with running(bundle, max_wait=5) as found:
        searcher, asking = Gated.under(found.service), Asking()
        slow(found, 4.0)
        asking.ask(found.client)
        searcher.arrived.acquire()
        asking.ask(found.client)  # 4 seconds are before it
        until(lambda: found.service._in_work == 2)
        refused = found.client("POST", "/v1/search", QUERY)
        assert (refused.status, refused.kind) == (503, "overloaded")
        assert refused.headers["retry-after"] == "8"
        assert found.client("POST", "/v1/search/batch", {"queries": [QUERY]}).status == 503
        assert found.client("GET", "/v1/items/sku-1").status == 200
        searcher.gate.set()
        assert asking.wait() == [200] * 2
        assert found.service.batcher.pace.seconds_a_query < 4.0
        # Where nothing is before it, no query is refused, so that the judgement can change.
        until(lambda: found.service._in_work == 0)
        slow(found, 100.0)
        assert found.client("POST", "/v1/search", QUERY).status == 200


def test_a_refusal_does_not_wait_for_the_body(bundle: Path) -> None:
    with running(bundle, queue=1) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", found.client.port), 60) as connection:
            connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert b" 503 " in connection.recv(65536)
        text = found.client("GET", "/metrics").body.decode()
        assert 'cir_requests_total{method="POST",route="/v1/search",status="503"} 1.0' in text
        searcher.gate.set()
        assert asking.wait() == [200]


def test_a_deadline_drops_what_waits(bundle: Path) -> None:
    with running(bundle) as found:
        patient = found.service.settings
        hasty = replace(patient, timeout=1.0)
        searcher, first, second, third = Gated.under(found.service), Asking(), Asking(), Asking()
        first.ask(found.client)
        searcher.arrived.acquire()
        found.service.settings = hasty
        second.ask(found.client)
        assert second.wait() == [504]
        searcher.gate.set()
        assert first.wait() == [200]
        until(lambda: found.service._in_work == 0)
        until(waiting_none(found))
        assert searcher.sizes == [1]  # the second was never computed
        searcher.gate.clear()
        third.ask(found.client)  # nothing is before it, and it is answered in time all the same
        assert third.wait() == [504]
        searcher.gate.set()
        until(lambda: found.service._in_work == 0)
        found.service.settings = patient
        assert found.client("POST", "/v1/search", QUERY).status == 200


def waiting_none(found: Running) -> Callable[[], bool]:
    return lambda: not found.service.batcher._waiting


def test_clients_that_go_away_cost_nothing(bundle: Path) -> None:
    with running(bundle) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()
        body = b'{"item": "sku-2", "text": "is red"}'
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        gone = socket.create_connection(("127.0.0.1", found.client.port))
        gone.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(waiting(found, 1))
        gone.close()
        until(lambda: found.service._in_work == 1)
        searcher.gate.set()
        assert asking.wait() == [200]
        until(waiting_none(found))
        assert searcher.sizes == [1]


def test_a_stop_answers_what_was_accepted(bundle: Path) -> None:
    with running(bundle) as found:
        searcher, asking = Gated.under(found.service), Asking()
        for _ in range(5):
            asking.ask(found.client)
        searcher.arrived.acquire()
        until(lambda: found.service._in_work == 5)
        found.server.should_exit = True
        until(lambda: not listens(found.client.port))
        searcher.gate.set()
        assert asking.wait() == [200] * 5


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_two_batches_are_computed_beside_each_other_where_enough_waits(bundle: Path) -> None:
    with running(bundle, max_batch=4, batches=2) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()
        asking.ask(found.client)  # one beside one
        searcher.arrived.acquire()
        for _ in range(5):
            asking.ask(found.client)
        until(waiting(found, 5))
        searcher.gate.set()
        assert asking.wait() == [200] * 7
        assert searcher.sizes[:2] == [1, 1]
        assert sum(searcher.sizes) == 7


def test_no_batch_is_begun_beside_one_that_encodes_images(bundle: Path) -> None:
    picture = base64.b64encode(png(0)).decode()
    with running(bundle, max_batch=4, batches=2) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client, item=None, image=picture)
        searcher.arrived.acquire()
        for query in ({"item": None, "image": picture}, {}, {}):
            asking.ask(found.client, **query)
        until(waiting(found, 3))
        assert searcher.sizes == [1]
        searcher.gate.set()
        assert asking.wait() == [200] * 4


def test_a_batch_that_cannot_be_computed_ends_no_thread(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(bundle, batches=1) as found:
        with monkeypatch.context() as patch:
            patch.setattr(batching, "_alike", lambda batch: 1 / 0)
            assert found.client("POST", "/v1/search", QUERY).status == 500
        assert found.client("POST", "/v1/search", QUERY).status == 200


@pytest.mark.parametrize("rest", [b"", b"x" * 300_000], ids=["head", "with the body"])
def test_a_connection_goes_on_after_refusals(bundle: Path, rest: bytes) -> None:
    """What is refused by its head leaves the body of the request behind, which is no request."""
    with running(bundle, queue=1) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        alive = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with socket.create_connection(("127.0.0.1", found.client.port), 60) as connection:
            for _ in range(3):
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % (1 + len(rest)) + b"{")
                refused = connection.recv(65536)
                assert refused.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: " in refused
                assert json.loads(refused.partition(b"\r\n\r\n")[2])["status"] == 503
                connection.sendall(rest + alive)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        searcher.gate.set()
        assert asking.wait() == [200]
        assert 'cir_refusals_total{reason="overloaded"} 3.0' in found.client("GET", "/metrics").body.decode()


def test_a_refusal_at_the_head_says_no_more_than_another(bundle: Path, tmp_path: Path) -> None:
    """Who has no key is told so, and a page elsewhere may read why it is refused."""
    keys = tmp_path / "keys"
    keys.write_text("shop: " + "k" * 24)
    keys.chmod(0o600)
    origin = "https://shop.example"
    with running(bundle, "k" * 24, queue=1, api_key_file=str(keys), allow_origins=(origin,)) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()
        assert Client(found.client.port)("POST", "/v1/search", QUERY).status == 401
        assert found.client("POST", "/v1/search", QUERY).status == 503
        told = found.client("POST", "/v1/search", QUERY, Origin=origin)
        assert (told.status, told.headers["access-control-allow-origin"]) == (503, origin)
        plain = found.client("POST", "/v1/search?x=1", QUERY)
        assert (plain.status, plain.kind) == (503, "overloaded")
        assert set(plain.headers) == set(told.headers) - {"access-control-allow-origin", "vary"} | {
            "cross-origin-resource-policy"
        }
        searcher.gate.set()
        assert asking.wait() == [200]
