"""Each route answers with the problems that the document lists for it: each of them, and no other."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.store import Store
from cir_infer.serving.opened import Current
from cir_infer.serving.problems import KINDS
from cir_infer.serving.service import Service
from tests.serving.support import Client, Running, form, make_gallery, png, running


class Route(NamedTuple):
    """A route and a request that it answers."""

    method: str
    path: str
    body: Any = None
    kind: str = "application/json"


FORM, FORM_KIND = form([("text", "is red")], png(5))
QUERY = {"item": "sku-1", "text": "is red"}
ROUTES = {
    "search": Route("POST", "/v1/search", QUERY),
    "search_batch": Route("POST", "/v1/search/batch", {"queries": [QUERY]}),
    "explain": Route("POST", "/v1/explain", {**QUERY, "hit": "sku-2"}),
    "search_vectors": Route("POST", "/v1/search/vectors", {"vectors": [[1.0] * 8]}),
    "list_items": Route("GET", "/v1/items"),
    "get_item": Route("GET", "/v1/items/sku-1"),
    "put_item": Route("PUT", "/v1/items/new", png(7), "image/png"),
    "patch_item": Route("PATCH", "/v1/items/sku-3", {"metadata": {"price": 1}}),
    "delete_item": Route("DELETE", "/v1/items/sku-4"),
    "get_item_image": Route("GET", "/v1/items/sku-1/image"),
    "list_fields": Route("GET", "/v1/fields"),
    "info": Route("GET", "/v1/info"),
    "alive": Route("GET", "/healthz"),
    "ready": Route("GET", "/readyz"),
    "metrics": Route("GET", "/metrics"),
}


class Services(NamedTuple):
    one: Running
    keyed: Running
    empty: Running


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("problems")
    bundle = make_gallery(folder)
    (folder / "keys").write_text("k" * 32)
    with Engine(bundle, device="cpu", threads=1) as engine:
        Gallery.create(folder / "empty.gallery", engine).close()
    with (
        running(bundle, writable=True) as one,
        running(bundle, key="k" * 32, api_key_file=str(folder / "keys"), writable=True) as keyed,
        running(bundle, gallery=str(folder / "empty.gallery"), writable=True) as empty,
    ):
        yield Services(one, keyed, empty)


@contextmanager
def with_settings(service: Service, **changes: Any) -> Iterator[None]:
    """Other settings for a service that runs."""
    before = replace(service.settings)
    for name, value in changes.items():
        object.__setattr__(service.settings, name, value)
    try:
        yield
    finally:
        for name in changes:
            object.__setattr__(service.settings, name, getattr(before, name))


def asked(client: Client, route: Route, headers: list[tuple[str, str]] = (), **changes: Any) -> str | None:  # type: ignore[assignment]
    """The kind of the problem that a request is answered with; None for another answer."""
    route = route._replace(**changes)
    body = route.body
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    try:
        connection.putrequest(route.method, route.path, skip_host=any(name == "Host" for name, _ in headers))
        if client.key is not None and not any(name == "Authorization" for name, _ in headers):
            connection.putheader("Authorization", f"Bearer {client.key}")
        if body is not None:
            connection.putheader("Content-Type", route.kind)
            connection.putheader("Content-Length", str(len(body)))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        said = response.read()
    finally:
        connection.close()
    if response.getheader("Content-Type") != "application/problem+json":
        return None
    return str(json.loads(said)["type"].rpartition(":")[2])


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What routes wait for takes longer than they wait."""
    use = Current.use

    async def never(*_: Any) -> Any:
        await asyncio.sleep(60)

    def late(self: Current) -> Any:
        time.sleep(1.0)
        return use(self)

    for name in ("search", "explain", "search_vectors"):
        monkeypatch.setattr(Service, name, never)
    monkeypatch.setattr(Current, "use", late)


def busy(_: Store) -> Any:
    raise GalleryBusyError("another process is writing")


Provoking = Callable[[Services, Route, pytest.MonkeyPatch], "list[str | None]"]


def of_every_route(services: Services, route: Route, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    one = services.one
    found = [
        asked(one.client, route, [("Authorization", "x"), ("Authorization", "y")]),
        asked(one.client, route, [("Host", "elsewhere.example")]),
        asked(one.client, route, [("X-Long", "x" * 20_000), ("X-Longer", "x" * 20_000)]),
        asked(one.client, route, [("Origin", "http://elsewhere.example")]),
        asked(services.keyed.client, route, [("Authorization", "Bearer wrong")]),
    ]
    with with_settings(one.service, per_key=0):
        found.append(asked(one.client, route))
    with with_settings(one.service, concurrency=0):
        found.append(asked(one.client, route))
    with monkeypatch.context() as patch:
        patch.setattr(one.service, "ready", False)
        found.append(asked(one.client, route))
    return found


def of_bodies(services: Services, route: Route, _: pytest.MonkeyPatch) -> list[str | None]:
    one = services.one
    found = [
        asked(one.client, route, body=b"x", kind="text/plain"),
        asked(one.client, route, body=b"{", kind="application/json"),
        asked(one.client, route, body={"unknown": 1}, kind="application/json"),
        asked(one.client, route, body={**QUERY, "hit": "sku-2", "text": ""}, kind="application/json"),
        asked(one.client, route, body={**QUERY, "text": ""}, kind="application/json"),
        asked(one.client, route, body=form([("text", "")], png(5))[0], kind=FORM_KIND),
    ]
    with with_settings(one.service, max_upload=10):
        found.append(asked(one.client, route, body=b" " * 20, kind="application/json"))
    with with_settings(one.service, read_timeout=0.2):
        found.append(
            asked(
                one.client, route, [("Content-Type", "application/json"), ("Content-Length", "9")], body=None
            )
        )
    return found


def of_what_is_named(services: Services, route: Route, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    client = services.one.client
    found = [
        asked(client, route, path=f"{route.path}?unknown=1"),
        asked(client, route, path=route.path.replace("sku-1", "none").replace("sku-4", "none")),
        asked(client, route, path=route.path.replace("sku-4", "x" * 5000)),
        asked(client, route, body=b"no picture", kind="image/png"),
        asked(services.empty.client, route, body={"vectors": [[1.0] * 8]}, kind="application/json"),
    ]
    for query in ({"item": "none"}, {"hit": "none"}, {"item": None, "image": "bm8="}):
        body = {**QUERY, "hit": "sku-2"} | query
        if route.path != "/v1/explain":
            del body["hit"]
        found.append(asked(client, route, body={n: v for n, v in body.items() if v}, kind="application/json"))
    if route.method in ("PUT", "PATCH"):
        path = "/v1/items/none-of-these"
        found.append(asked(client, route, path=path, body={"metadata": {}}, kind="application/json"))
    if route.method in ("PUT", "POST"):
        text = form(
            [("text", "is red"), *([("hit", "sku-2")] * (route.path == "/v1/explain"))], b"no picture"
        )
        found.append(asked(client, route, body=text[0], kind=text[1]))
        found.append(asked(services.empty.client, route, body=FORM, kind=FORM_KIND))
    with monkeypatch.context() as patch:
        item = Searcher.item
        patch.setattr(Searcher, "item", lambda self, id: replace(item(self, id), source="/elsewhere.png"))
        found.append(asked(client, route))
    return found


def of_time(services: Services, route: Route, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(Store, "writing", busy)
        found.append(asked(services.one.client, route))
    with monkeypatch.context() as patch, with_settings(services.one.service, timeout=0.05):
        slow(patch)
        found.append(asked(services.one.client, route))
    return found


def documented(client: Client) -> dict[str, set[str]]:
    """The kinds of problems that the document lists, by operation."""
    kinds = {kind.title: name for name, kind in KINDS.items()}
    found = {}
    for methods in client("GET", "/openapi.json").json["paths"].values():
        for operation in methods.values():
            titles = [
                title
                for answer in operation["responses"].values()
                if "application/problem+json" in answer.get("content", {})
                for title in answer["description"].split("; ")
            ]
            found[operation["operationId"]] = {kinds[title] for title in titles}
    return found


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_answers_with_the_problems_that_the_document_lists(
    services: Services, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PATCH was said to find the gallery empty, and none to be asked by a name that it does not know."""
    told = documented(services.one.client)
    assert set(told) == set(ROUTES)
    provoked: set[str | None] = set()
    provoking: list[Provoking] = [of_every_route, of_what_is_named, of_time]
    if ROUTES[name].body is not None:
        provoking.append(of_bodies)
    for provoke in provoking:
        provoked |= {*provoke(services, ROUTES[name], monkeypatch)}
    assert provoked - {None} == told[name]
    if name != "delete_item":
        assert asked(services.one.client, ROUTES[name]) is None, "what it is asked otherwise it answers"


def test_examples_of_problems_are_of_their_status(client: Client) -> None:
    document = client("GET", "/openapi.json").json
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                example = answer.get("content", {}).get("application/problem+json", {}).get("example")
                if example is not None:
                    kind = KINDS[example["type"].rpartition(":")[2]]
                    assert (str(kind.status), kind.title) == (status, example["title"]) and example["detail"]
