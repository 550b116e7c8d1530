"""A bundle or a gallery is replaced, a store hangs: what else is asked goes on."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Engine, Gallery
from cir_infer.gallery import Snapshot
from tests.serving.asking import QUERY, Asking, until
from tests.serving.support import Gated, Running, running


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
        until(lambda: first._users == 0 and first.searcher._users.ended)
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
