"""Queries over HTTP give what `Searcher.query` gives."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Hits, Searcher
from cir_infer.serving.browsing import item_of
from cir_infer.serving.schemas import ExplainAnswer, SearchAnswer, parsed
from cir_infer.serving.service import Service
from tests.serving.support import ODD_IDS, Client, make_gallery, png, running, together


@pytest.fixture(scope="module")
def searcher(bundle: Path) -> Iterator[Searcher]:
    with Searcher(bundle, device="cpu", threads=1) as opened:
        yield opened


def same(answer: Any, hits: Hits) -> None:
    assert [hit["id"] for hit in answer["hits"]] == hits.ids
    assert [hit["rank"] for hit in answer["hits"]] == [hit.rank for hit in hits]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(hits.scores, abs=1e-6)
    for told, hit in zip(answer["hits"], hits, strict=True):
        assert told["terms"] == pytest.approx(dict(hit.terms), abs=1e-6)
        assert told["metadata"] == dict(hit.metadata)
    assert answer["unknown_words"] == list(hits.unknown_words)
    assert answer["reference_id"] == hits.reference_id


def test_an_image_and_a_text(client: Client, searcher: Searcher) -> None:
    answer = client.form("/v1/search", [("text", "is red"), ("k", "7")], png(3))
    assert answer.status == 200, answer
    same(answer.json, searcher.query(png(3), "is red", 7))
    assert set(answer.json["timing"]) == {"read", "decode", "wait", "search", "total"}
    assert answer.headers["server-timing"].startswith("read;dur=")


def test_an_image_as_base64(client: Client, searcher: Searcher) -> None:
    image = base64.b64encode(png(5)).decode()
    for form in (image, f"data:image/png;base64,{image}"):
        same(client.search(image=form, text="longer").json, searcher.query(png(5), "longer", 10))


@pytest.mark.parametrize("item", ["sku-4", *ODD_IDS])
def test_an_item_is_refined(client: Client, searcher: Searcher, item: str) -> None:
    answer = client.search(item=item, text=["is red", "longer"], k=4)
    same(answer.json, searcher.query(searcher.item(item), ["is red", "longer"], 4))
    assert item not in [hit["id"] for hit in answer.json["hits"]]


@pytest.mark.parametrize("where", ["colour = red and price < 20", {"colour": "red", "price": {"<": 20}}])
def test_filters_and_exclusions(client: Client, searcher: Searcher, where: Any) -> None:
    hits = searcher.query(png(1), "is red", 5, where, ["sku-3", "nowhere"], exclude_reference=True)
    query = {
        "text": "is red",
        "k": 5,
        "where": where,
        "exclude": ["sku-3", "nowhere"],
        "exclude_reference": True,
    }
    image = base64.b64encode(png(1)).decode()
    same(client.search(image=image, **query).json, hits)
    text = where if isinstance(where, str) else '{"colour": "red", "price": {"<": 20}}'
    fields = [("text", "is red"), ("k", "5"), ("where", text), ("exclude", "sku-3"), ("exclude", "nowhere")]
    same(client.form("/v1/search", [*fields, ("exclude_reference", "true")], png(1)).json, hits)


def test_a_balance_of_terms(client: Client, searcher: Searcher) -> None:
    balance = {"implicit_similarity": 0.2, "explicit_matching": 3.0}
    hits = searcher.query(png(1), "is red", 6, balance=balance)
    image = base64.b64encode(png(1)).decode()
    same(client.search(image=image, text="is red", k=6, balance=balance).json, hits)
    fields = [("text", "is red"), ("k", "6"), ("balance", json.dumps(balance))]
    same(client.form("/v1/search", fields, png(1)).json, hits)


def test_why(client: Client, searcher: Searcher) -> None:
    for image, reference in ((None, "sku-1"), (png(5), None)):
        query = {"text": "is red", "hit": "sku-9", "balance": {"explicit_matching": 2.0}}
        if image is None:
            answer = client("POST", "/v1/explain", {"item": "sku-1", **query})
        else:
            fields = [("text", "is red"), ("hit", "sku-9"), ("balance", '{"explicit_matching": 2.0}')]
            answer = client.form("/v1/explain", fields, image)
        assert answer.status == 200, answer
        told = answer.json
        parsed(ExplainAnswer, answer.body)
        asked = searcher.item("sku-1") if reference else image
        expected = searcher.explain("sku-9", asked, "is red", {"explicit_matching": 2.0}).as_dict()
        assert told["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert [word["text"] for word in told["words"]] == [word["text"] for word in expected["words"]]
        for name, heat in told["terms"].items():
            assert np.array(heat["map"]) == pytest.approx(np.array(expected["terms"][name]["map"]), abs=1e-5)
    for status, wrong in (
        (404, {"item": "sku-1", "text": "is red", "hit": "gone"}),
        (404, {"item": "gone", "text": "is red", "hit": "sku-1"}),
        (422, {"item": "sku-1", "text": "is red"}),
        (422, {"item": "sku-1", "text": "", "hit": "sku-1"}),
    ):
        refused = client("POST", "/v1/explain", wrong)
        assert refused.status == status, refused


def test_hits_come_with_reasons_where_they_are_asked_for(client: Client) -> None:
    query = {"item": "sku-1", "text": "is red", "balance": {"explicit_matching": 2.0}}
    answer = client.search(**query, k=3, explain=2)
    parsed(SearchAnswer, answer.body)
    assert "explain;dur=" in answer.headers["server-timing"]
    told = answer.json["explanations"]
    assert [why["id"] for why in told] == [hit["id"] for hit in answer.json["hits"]][:2]
    alone = client("POST", "/v1/explain", {**query, "hit": told[1]["id"]}).json
    del alone["timing"]
    assert told[1] == alone
    assert client.search(**query, k=3).json["explanations"] == []
    assert len(client.search(**query, k=1, explain=2).json["explanations"]) == 1
    fields = [("text", "is red"), ("k", "2"), ("explain", "1")]
    (why,) = client.form("/v1/search", fields, png(5)).json["explanations"]
    assert why["reference"]
    both = client("POST", "/v1/search/batch", {"queries": [{**query, "explain": 1}, query]}).json["answers"]
    assert [len(one["explanations"]) for one in both] == [1, 0]
    assert {client.search(**query, explain=number).status for number in (-1, 11)} == {422}
    assert client("POST", "/v1/explain", {**query, "hit": "sku-2", "explain": 1}).status == 422


def test_why_where_references_have_an_encoder_of_their_own(tmp_path: Path) -> None:
    """A search from the gallery read the item's image; what explained it read the row, and was refused."""
    bundle = make_gallery(tmp_path, "separate")
    query = {"item": "sku-1", "text": "is red"}
    with running(bundle) as (client, *_), Searcher(bundle, device="cpu", threads=1) as searcher:
        answer = client.search(**query, k=2, explain=1).json
        hit = answer["hits"][0]
        alone = client("POST", "/v1/explain", {**query, "hit": hit["id"]})
        assert alone.status == 200, alone
        picture = Path(str(searcher.item("sku-1").source))
        expected = searcher.explain(hit["id"], picture, "is red").as_dict()
        for told in (alone.json, answer["explanations"][0]):
            assert told["score"] == pytest.approx(hit["score"], abs=1e-5)
            for side in ("terms", "reference"):
                heat, wanted = told[side]["similarity"], expected[side]["similarity"]
                assert np.array(heat["map"]) == pytest.approx(np.array(wanted["map"]), abs=1e-5)
        picture.unlink()
        gone = client("POST", "/v1/explain", {**query, "hit": hit["id"]})
        assert (gone.status, gone.kind) == (422, "unusable-image")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("by a picture from elsewhere", ["changed", None]),
        ("where it lies", ["changed", None]),
        ("removed", ["not-found", None]),
        ("described", [None, None]),
        ("the reference", ["changed", "changed"]),
    ],
)
def test_what_is_explained_is_what_was_answered(
    own: Path, monkeypatch: pytest.MonkeyPatch, change: str, told: list[str | None]
) -> None:
    """An item that was replaced between the answer and the explanation was explained as the new one."""
    place, explained = own.with_suffix(".gallery"), Service._explained

    def beside(self: Service, opened: Any, hit: Any, *rest: Any) -> Any:
        monkeypatch.undo()
        with Engine(own, device="cpu", threads=1) as engine, Gallery.open(place, engine) as other:
            item = "sku-1" if change == "the reference" else hits[0]["id"]
            source = Path(other.held([item])[item].source or "")
            if change == "by a picture from elsewhere":
                source = own.parent / "elsewhere.png"
            if change == "removed":
                other.remove([item])
            elif change == "described":
                other.set_metadata([item], [{"other": 1}])
            else:
                source.write_bytes(png(900))
                other.add([source], ids=[item], existing="replace")
        return explained(self, opened, hit, *rest)

    with running(own) as (client, *_):
        query = {"item": "sku-1", "text": "is red", "k": 2}
        hits = client.search(**query).json["hits"]
        monkeypatch.setattr(Service, "_explained", beside)
        answer = client.search(**query, explain=2)
        assert answer.status == 200 and answer.json["hits"] == hits
        reasons = answer.json["explanations"]
        assert [why.get("type", "").rpartition(":")[2] or None for why in reasons] == told
        for why, hit in zip(reasons, hits, strict=True):
            if "type" not in why:
                assert why["id"] == hit["id"] and why["score"] == pytest.approx(hit["score"], abs=1e-5)


def test_a_reason_that_cannot_be_told_says_so(own: Path) -> None:
    with running(own) as (client, *_):
        hits = client.search(item="sku-1", text="is red", k=2).json["hits"]
        with Gallery.open(own.with_suffix(".gallery"), read_only=True) as gallery:
            source = item_of(gallery.snapshot(), hits[1]["id"]).source
        Path(str(source)).unlink()
        answer = client.search(item="sku-1", text="is red", k=2, explain=2)
        assert (answer.status, answer.json["hits"]) == (200, hits)
        first, second = answer.json["explanations"]
        assert first["id"] == hits[0]["id"]
        assert (second["status"], second["type"].rpartition(":")[2]) == (422, "unusable-image")


def test_vectors_made_elsewhere(client: Client, searcher: Searcher) -> None:
    vectors = searcher.engine.encode_images([png(1), png(2)])
    query = {"vectors": vectors.tolist(), "k": 3, "where": "price > 1", "exclude": ["sku-2"], "metric": "dot"}
    answer = client("POST", "/v1/search/vectors", query)
    assert answer.status == 200, answer
    expected = searcher.search_vectors(vectors, 3, "price > 1", ["sku-2"], "dot")
    for told, hits in zip(answer.json["answers"], expected, strict=True):
        assert [hit["id"] for hit in told] == hits.ids
        assert [hit["score"] for hit in told] == pytest.approx(hits.scores, abs=1e-6)
    for size in (1e-300, 1e300):  # a cosine does not depend on it, here neither
        cosine = client("POST", "/v1/search/vectors", {"vectors": (vectors.astype(float) * size).tolist()})
        assert cosine.status == 200, cosine
    for wrong in (
        [],
        [[1.0]],
        [[0.0] * 8],
        [[1.0] * 8, [1.0] * 7],
        [[1e400] * 8],
        [["1"] * 8],
        [[1.0] * 8] * 33,
    ):
        refused = client(
            "POST", "/v1/search/vectors", json.dumps({"vectors": wrong}), Content_Type="application/json"
        )
        assert (refused.status, refused.kind) == (422, "invalid-argument"), wrong


def test_an_unknown_word_is_named(client: Client) -> None:
    assert client.search(item="sku-1", text="is purplish red").json["unknown_words"] == ["purplish"]


def test_a_filter_that_leaves_nothing(client: Client) -> None:
    answer = client.search(item="sku-1", text="is red", where="price > 1000")
    assert (answer.status, answer.json["hits"]) == (200, [])


def test_several_at_once(client: Client, searcher: Searcher) -> None:
    queries = [
        {"item": "sku-1", "text": "is red", "k": 3},
        {"item": "gone", "text": "is red"},
        {"image": base64.b64encode(png(2)).decode(), "text": "longer"},
        {"item": "sku-2", "text": ""},
    ]
    answer = client("POST", "/v1/search/batch", {"queries": queries})
    assert answer.status == 200, answer
    first, second, third, fourth = answer.json["answers"]
    same(first, searcher.query(searcher.item("sku-1"), "is red", 3))
    same(third, searcher.query(png(2), "longer", 10))
    assert (second["status"], fourth["status"]) == (404, 422)


def test_many_at_one_time_get_each_its_own(client: Client, searcher: Searcher) -> None:
    asked = [(number % 12, ("is red", "longer", "is blue and more")[number % 3]) for number in range(24)]
    calls = [lambda n=n, t=t: client.form("/v1/search", [("text", t)], png(n)) for n, t in asked]
    for (number, text), answer in zip(asked, together(calls), strict=True):
        assert answer.status == 200, answer
        same(answer.json, searcher.query(png(number), text, 10))


WRONG: list[tuple[int, str, dict[str, Any]]] = [
    (404, "not-found", {"item": "gone", "text": "is red"}),
    (422, "unusable-text", {"item": "sku-1", "text": ""}),
    (422, "unusable-text", {"item": "sku-1", "text": ["a", "b", "c"]}),
    (422, "unusable-text", {"item": "sku-1", "text": "red " * 2000}),
    (422, "invalid-argument", {"item": "sku-1", "text": "red " * 9000}),
    (422, "invalid-argument", {"item": "sku-1"}),
    (422, "invalid-argument", {"text": "is red"}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "k": 0}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "k": 1000}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "k": "5"}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "k": True}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "K": 5}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "where": "price <"}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "where": {"price": {"~": 3}}}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "where": "x" * 70_000}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "exclude": "sku-2"}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "balance": {"other": 2.0}}),
    (422, "invalid-argument", {"item": "sku-1", "text": "is red", "balance": {"explicit_matching": 1e30}}),
    (422, "invalid-argument", {"item": "sku-1", "image": "aaaa", "text": "is red"}),
    (422, "invalid-argument", {"image": "not base64!", "text": "is red"}),
    (422, "unusable-image", {"image": base64.b64encode(b"no image").decode(), "text": "is red"}),
    (422, "unusable-image", {"image": base64.b64encode(png(1)[:-40]).decode(), "text": "is red"}),
    (422, "unusable-image", {"image": base64.b64encode(b"<svg/>").decode(), "text": "is red"}),
    # No address is ever fetched.
    (422, "invalid-argument", {"image": "http://127.0.0.1/x.png", "text": "is red"}),
    (422, "invalid-argument", {"image": "/etc/passwd#", "text": "is red"}),
]


@pytest.mark.parametrize(("status", "kind", "query"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said(client: Client, status: int, kind: str, query: dict[str, Any]) -> None:
    answer = client.search(**query)
    assert (answer.status, answer.kind) == (status, kind), answer
    assert 10 < len(answer.json["detail"]) < 1000
    assert answer.json["instance"].endswith(answer.headers["x-request-id"])
    assert "Traceback" not in answer.body.decode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b"{", "application/json"),
        (400, b"\xff\xfe", "application/json"),
        (422, b"[]", "application/json"),
        (400, b"[" * 100_000, "application/json"),
        (415, b"{}", "text/plain"),
        (415, b"{}", ""),
        (415, b"<a/>", "application/xml"),
        (400, b"", "multipart/form-data"),
        (400, b"x", "multipart/form-data; boundary=b"),
        (
            400,
            b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nred',
            "multipart/form-data; boundary=b",
        ),
        (
            400,
            b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
        (
            400,
            b'--b\r\nContent-Disposition: form-data; name="text"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
            b"aXMgcmVk\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
    ],
)
def test_what_is_no_request(client: Client, status: int, body: bytes, kind: str) -> None:
    answer = client("POST", "/v1/search", body, Content_Type=kind)
    assert answer.status == status, answer
    assert answer.kind


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("search", '{"item": "sku-1", "text": "is red", "k": 5, "k": 1}'),
        ("search", '{"item": "sku-1", "text": "is red", "where": {"price": {"<": 5}, "price": {">": 2}}}'),
        ("search", '{"item": "sku-1", "text": "is: red", "where": {"$and": [{"price": {"<": 5, "<": 9}}]}}'),
        ("search", '{"item": "sku-1", "text": "is red", "where": {"a": [], "a" : null, "b": "c:d"}}'),
        ("search/batch", '{"queries": [{"item": "sku-1", "text": "is red", "text": "is blue"}]}'),
        ("search/vectors", '{"vectors": [[1, 2, 3, 4, 5, 6, 7, 8]], "exclude": ["a"], "exclude": []}'),
        ("explain", '{"item": "sku-1", "text": "is red", "hit": "sku-2", "hit": "sku-3"}'),
    ],
)
def test_no_name_is_there_twice(client: Client, route: str, body: str) -> None:
    """The last one counted: of two conditions the first was lost, and what it left out was answered."""
    answer = client("POST", f"/v1/{route}", body, Content_Type="application/json")
    assert (answer.status, answer.kind) == (400, "malformed-request") and "occurs twice" in answer.json[
        "detail"
    ]


def test_colons_are_no_names(client: Client) -> None:
    for text in ("is red: longer", ":::", '"k": 1, "k": 2 is red'):
        where = {"$or": [{"a:b": ":"}, {"price": [1, 2.5, None, True, "x:y"]}]}
        assert client.search(item="sku-1", text=text, where=where).status in (200, 422), text


def test_form_fields_are_strict(client: Client) -> None:
    for fields in (
        [("text", "is red"), ("k", "1.5")],
        [("text", "is red"), ("k", "5"), ("k", "6")],
        [("text", "is red"), ("size", "5")],
        [("text", "is red"), ("exclude_reference", "yes")],
        [("text", "is red"), ("item", "sku-1")],
    ):
        answer = client.form("/v1/search", fields, png(1))
        assert (answer.status, answer.kind) == (422, "invalid-argument"), fields


def test_an_image_of_too_many_pixels_is_not_decoded(client: Client) -> None:
    image = png(1)
    head = b"IHDR" + struct.pack(">II", 10_000, 5_001) + image[24:29]
    claims = image[:12] + head + struct.pack(">I", zlib.crc32(head)) + image[33:]
    answer = client.form("/v1/search", [("text", "is red")], claims)
    assert (answer.status, answer.kind) == (422, "unusable-image")
    assert "10,000 x 5,001" in answer.json["detail"]
