"""Many at once: what waits is computed together, too much is refused, what nobody wants is dropped."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Engine, Gallery
from cir_infer.gallery import Snapshot
from cir_infer.serving import batching
from cir_infer.serving.batching import Pace
from cir_infer.serving.openapi import Document
from tests.serving.support import Client, Gated, Running, png, running

QUERY = {"item": "sku-1", "text": "is red", "k": 3}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Asking:
    """Requests that are on their way."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self._threads: list[threading.Thread] = []

    def ask(self, client: Client, **query: Any) -> None:
        thread = threading.Thread(
            target=lambda: self.answers.append(client("POST", "/v1/search", QUERY | query))
        )
        thread.start()
        self._threads.append(thread)

    def wait(self) -> list[int]:
        for thread in self._threads:
            thread.join(120)
        return sorted(answer.status for answer in self.answers)


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
        begun = time.monotonic()
        refused = found.client("POST", "/v1/search", QUERY)
        assert (refused.status, refused.kind) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert time.monotonic() - begun < 20
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
    with running(bundle, timeout=1) as found:
        searcher, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        searcher.arrived.acquire()
        asking.ask(found.client)
        assert asking.wait() == [504, 504]
        searcher.gate.set()
        until(lambda: found.service._in_work == 0)
        until(waiting_none(found))
        assert searcher.sizes == [1]  # the second was never computed
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


def test_a_changed_bundle_drops_no_request(own: Path) -> None:
    with running(own) as found:
        before = found.client("POST", "/v1/search", QUERY).json["hits"]
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                statuses.append(found.client("POST", "/v1/search", QUERY).status)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        first = found.service.current._opened
        shutil.copy(own, own.with_name("new.cir"))
        own.with_name("new.cir").replace(own)
        assert found.service.reload()
        assert found.service.current._opened is not first
        until(lambda: first._users == 0 and first.searcher._closed)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        assert found.client("POST", "/v1/search", QUERY).json["hits"] == before
        # One that cannot be used changes nothing.
        own.write_bytes(b"no bundle")
        assert not found.service.reload()
        assert found.client("POST", "/v1/search", QUERY).status == 200
        text = found.client("GET", "/metrics").body.decode()
        assert 'cir_bundle_reloads_total{outcome="failed"} 1.0' in text


def test_no_gallery_is_asked_or_closed_in_the_event_loop(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: dict[str, list[Any]] = {}

    def watched(kind: type, name: str) -> None:
        before, seen = getattr(kind, name), loops.setdefault(name, [])

        def call(own: Any, *given: Any) -> Any:
            seen.append(asyncio._get_running_loop())
            return before(own, *given)

        monkeypatch.setattr(kind, name, call)

    with running(bundle) as found:
        watched(Snapshot, "row")
        watched(Snapshot, "_columns")
        watched(Engine, "close")
        assert found.client("POST", "/v1/search", QUERY | {"item": "nope"}).status == 404
        gated, asking = Gated.under(found.service), Asking()
        asking.ask(found.client)
        assert gated.arrived.acquire(timeout=120)
        assert found.service.reload()
        gated.gate.set()
        assert asking.wait() == [200]
        until(lambda: bool(loops["close"]))
    assert all(loops.values())
    assert {loop for seen in loops.values() for loop in seen} == {None}


def test_pictures_that_hang_hold_up_no_lookup_and_lookups_no_watcher(served: Running) -> None:
    client, service = served.client, served.service
    come, items = threading.Event(), threading.Event()
    try:
        for _ in range(2):  # as a store does that does not answer
            service.picturing.submit(come.wait, 60)
        assert client("GET", "/v1/items/sku-1").status == 200
        for _ in range(2):
            service.beside.submit(items.wait, 60)
        assert client("GET", "/metrics").status == 200
        items.set()
        come.set()
        assert client("GET", "/v1/items/sku-1/image").status == 200
    finally:
        items.set()
        come.set()


def test_fields_are_those_of_the_gallery_that_took_the_others_place(own: Path) -> None:
    with running(own) as found:
        assert {field["name"] for field in found.client("GET", "/v1/fields").json["fields"]} == {
            "colour",
            "price",
        }
        generation = found.client("GET", "/v1/info").json["gallery"]["generation"]
        folder, other = own.with_suffix(".gallery"), own.with_name("other.gallery")
        with (
            Engine(own, device="cpu", threads=1) as engine,
            Gallery.create(other, engine, dtype="float32") as gallery,
        ):
            gallery.add([own.with_name("picture00.png")], ids=["a"], metadata=[{"size": 3}])
            assert gallery.snapshot().generation == generation
        folder.rename(own.with_name("old.gallery"))
        other.rename(folder)
        assert found.service.reload()
        assert [field["name"] for field in found.client("GET", "/v1/fields").json["fields"]] == ["size"]


@pytest.mark.parametrize(
    "kind", ["SearchRequest", "SearchAnswer", "ItemsAnswer", "BatchAnswer", "ProblemAnswer"]
)
def test_the_document_describes_every_route(client: Client, kind: str) -> None:
    document = client("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        *(
            "/v1/search",
            "/v1/search/batch",
            "/v1/search/vectors",
            "/v1/items",
            "/v1/items/{id}",
            "/v1/items/{id}/image",
        ),
        *("/v1/explain", "/v1/fields", "/v1/info", "/healthz", "/readyz", "/metrics"),
    }
    assert kind in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (path, method)
            assert operation["responses"], (path, method)


def test_others_are_answered_while_the_document_is_made(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, others = threading.Event(), threading.Event()
    made = Document.made

    def slow_to_make(document: Document) -> dict[str, Any]:
        begun.set()
        assert others.wait(120)
        return made(document)

    monkeypatch.setattr(Document, "made", slow_to_make)
    told: list[int] = []
    asking = threading.Thread(target=lambda: told.append(client("GET", "/openapi.json").status))
    asking.start()
    assert begun.wait(120)
    assert client("POST", "/v1/search", QUERY).status == 200
    others.set()
    asking.join(120)
    assert told == [200]


def test_examples_are_what_is_read_and_written(client: Client) -> None:
    from cir_infer.serving import schemas
    from cir_infer.serving.schemas import parsed

    document = client("GET", "/openapi.json").json
    seen = 0
    for methods in document["paths"].values():
        for operation in methods.values():
            contents = [operation.get("requestBody", {}).get("content", {})]
            contents += [answer.get("content", {}) for answer in operation["responses"].values()]
            for content in contents:
                for entry in content.values():
                    name = entry.get("schema", {}).get("$ref", "").rpartition("/")[2]
                    if name and "example" in entry:
                        parsed(getattr(schemas, name), json.dumps(entry["example"]).encode())
                        seen += 1
    assert seen > 20


def test_metrics_are_prometheus(client: Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client("POST", "/v1/search", QUERY)
    answer = client("GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert {"cir_requests", "cir_request_seconds", "cir_stage_seconds", "cir_batch_queries"} <= set(families)
    assert families["cir_gallery_rows"].samples[0].value == 40
    stages = {sample.labels["stage"] for sample in families["cir_stage_seconds"].samples}
    assert stages == {"decode", "wait", "search"}


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


def test_fewer_are_let_in_where_refusing_makes_answers_slower() -> None:
    pace = Pace()
    assert pace.room(64) == 64  # nothing is known yet
    pace._usual, pace._spent, pace._count = 0.001, 2.0, 1000.0
    assert pace.room(64) == 64  # none was refused: these are slow by themselves
    storm(pace)
    assert pace.room(64) == 24  # which take three quarters of what 64 did
    pace._spent = 0.5
    assert pace.room(64) == 64
    pace._spent = 1e6
    assert (pace.room(64), pace.room(4)) == (8, 1)


def storm(pace: Pace) -> None:
    """Let it believe that many were refused just now."""
    pace.refused()
    pace._refusals = 10 * pace._count + 10


def test_what_is_usual_is_learned_while_refusals_are_few() -> None:
    pace = Pace()
    pace.begin()
    pace.answered(3)
    usual = pace._usual
    assert usual > 0
    storm(pace)
    pace._since -= 5.0
    pace.answered(1)
    assert pace._usual == usual
    assert pace.room(64) == 8
    pace._refused -= 2.0
    pace.answered(1)
    assert pace._usual > usual


def test_other_queries_that_take_longer_are_let_in_although_some_are_refused() -> None:
    """Items' queries for hours, then images': what is refused now and then does not make them slow."""
    pace = Pace()
    for _ in range(100):
        pace._since -= 0.001
        pace.answered(1)
    for _ in range(2000):
        pace._since -= 0.02
        pace.answered(1)
        pace._refusals *= 0.5  # one is refused for two that are answered
        pace.refused()
        assert pace.room(64) == 64
    assert pace._usual > 0.015
    # A storm is forgotten by what is answered, and by its end.
    storm(pace)
    pace._usual /= 100
    assert pace.room(64) == 8
    pace.answered(400)
    assert pace.room(64) == 64


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
