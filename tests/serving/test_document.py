"""The document of the interface says what is read and written, and holds nobody up."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from cir_infer.serving.openapi import Document
from cir_infer.serving.problems import MEDIA_TYPE
from tests.serving.asking import QUERY
from tests.serving.support import Client


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


def test_examples_of_problems_say_what_the_service_says(client: Client) -> None:
    document = client("GET", "/openapi.json").json
    told: dict[str, set[str]] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for answer in operation["responses"].values():
                example = answer.get("content", {}).get(MEDIA_TYPE, {}).get("example")
                if example:
                    told.setdefault(example["detail"], set()).add(example["type"])
    assert len(told) > 10 and all(len(kinds) == 1 for kinds in told.values())
    as_json = {"Content_Type": "application/json"}
    for asked in (
        client("GET", "/v1/items/none"),
        client("POST", "/v1/search", b"x", **as_json),
        client("PATCH", "/v1/items/a", b'{"metadata": {}}', **as_json),
        client("POST", "/v1/search", b"{}", Content_Type="text/plain"),
    ):
        assert told.get(asked.json["detail"]) == {asked.json["type"]}, asked.json


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
