"""Shards behind cir-serve answer as shards in this process, to the bit; and what they do not take."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery
from cir_infer.errors import CirError, GalleryError, ShardError, UsageError
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import Found, Held, References
from cir_infer.shards import HttpShard, LocalShard, ShardedGallery, ShardedSearcher
from cir_infer.shards.wire import (
    read_about,
    read_found,
    read_held,
    read_question,
    told_about,
    told_found,
    told_held,
    told_question,
)
from tests.gallery.support import DIM, filled, names, vectors
from tests.serving.support import Running, make_gallery, running
from tests.shards.test_shards import told

SHARDS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Running]]]:
    """A bundle, and its gallery in two shards, each behind a service."""
    folder = tmp_path_factory.mktemp("shards")
    bundle = make_gallery(folder)
    with Gallery.open(folder / "artemis.gallery") as one:
        ShardedGallery.split(one, folder / "shop.shards", SHARDS).close()
    with contextlib.ExitStack() as stack:
        services = [
            stack.enter_context(
                running(bundle, gallery=str(folder / "shop.shards" / f"{n:04}.gallery"), shard=True)
            )
            for n in range(SHARDS)
        ]
        yield bundle, services


def url(service: Running) -> str:
    return f"http://127.0.0.1:{service.client.port}"


def test_answers_are_those_of_shards_here(served: tuple[Path, list[Running]]) -> None:
    bundle, services = served
    folder = bundle.parent
    with (
        Engine(bundle, "cpu", 1) as engine,
        ShardedSearcher(engine, [url(service) for service in services]) as far,
        ShardedSearcher(engine, folder / "shop.shards") as near,
    ):
        for image in (folder / "picture03.png", near.item("sku-5"), near.item("ä ö/%2F?#.png")):
            for more in ({}, {"where": {"colour": "red"}}, {"exclude": ["sku-1"], "exclude_reference": True}):
                mine, theirs = (s.query(image, "is red", k=50, **more) for s in (far, near))  # type: ignore[arg-type]
                assert told(mine) == told(theirs) and len(mine) > 5
                assert (mine.reference_id, mine.coverage, mine.generations) == (
                    *(theirs.reference_id, theirs.coverage, theirs.generations),
                )
        assert mine.explain(0).as_dict() == theirs.explain(0).as_dict()
        queries = np.random.default_rng(1).standard_normal((9, engine.dimension))
        assert [told(hits) for hits in far.search_vectors(queries)] == [
            told(hits) for hits in near.search_vectors(queries)
        ]
        far.warm_up()
        assert len(far) == 40 and "http://" in str(far.describe())
        for nobody in ("nobody", "\ud800", ""):
            with pytest.raises(GalleryError, match="no shard holds"):
                far.item(nobody)
        with pytest.raises(UsageError, match=r"where|filter|price"):
            far.query(image, "is red", where="price <")
        with pytest.raises(UsageError, match="expected 1 to 3200"):
            far.query(image, "is red", k=3201)


def test_a_replica_that_is_gone(served: tuple[Path, list[Running]]) -> None:
    bundle, services = served
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        gone = HttpShard(f"http://127.0.0.1:{taken.getsockname()[1]}")
        first, second = (url(service) for service in services)
        with ShardedSearcher(bundle, [[gone, first], second], device="cpu") as searcher:
            for _ in range(3):
                assert searcher.query(bundle.parent / "picture03.png", "is red").coverage == 1.0
        with pytest.raises(ShardError, match=r"shard 0 of 2 .*cannot be reached"):
            ShardedSearcher(bundle, [gone, second], device="cpu")


def test_a_replica_that_is_stopped_under_queries(served: tuple[Path, list[Running]]) -> None:
    bundle, (first, second) = served
    gallery = str(bundle.parent / "shop.shards" / "0000.gallery")
    queries, failed, asked, stop = vectors(1, 1, 8), [], [0], threading.Event()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(running(bundle, gallery=gallery, shard=True))
        searcher = stack.enter_context(
            ShardedSearcher(None, [[url(other), url(first)], url(second)], deadline=600)
        )
        expected = told(searcher.search_vectors(queries)[0])

        def ask() -> None:
            while not stop.is_set():
                try:
                    if told(searcher.search_vectors(queries)[0]) != expected:
                        failed.append("another answer")
                except CirError as error:
                    failed.append(str(error))
                asked[0] += 1

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            other.server.should_exit = True
            while other.service.ready:
                stop.wait(0.01)
            after = asked[0] + 5
            while asked[0] < after:
                stop.wait(0.01)
        finally:
            stop.set()
            thread.join()
    assert not failed


def test_a_service_that_is_no_shard_or_asks_for_a_key(
    served: tuple[Path, list[Running]], tmp_path: Path
) -> None:
    bundle, _ = served
    with running(bundle) as service:
        with pytest.raises(UsageError, match="cir-serve --shard"):
            HttpShard(url(service)).about()
        for path in ("/v1/shard", "/v1/shard/search", "/v1/shard/items"):
            assert service.client("POST", path, {}).status in (404, 405)
    (tmp_path / "keys").write_text("k" * 32)
    with running(bundle, api_key_file=str(tmp_path / "keys"), shard=True) as service:
        with pytest.raises(UsageError, match="API key"):
            HttpShard(url(service)).about()
        assert HttpShard(url(service), key="k" * 32).about().size == 40


def test_what_a_shard_does_not_take(served: tuple[Path, list[Running]]) -> None:
    client = served[1][0].client
    terms = QueryTerms(np.ones((1, 1, 8), np.float32), None, ("a",))
    good = json.loads(told_question(terms, 3, None, [], References()))
    for change in (
        {"k": 0}, {"k": 3201}, {"k": "3"}, {"shape": [1, 1, 9]}, {"shape": [1 << 20] * 3}, {"tokens": 0},
        {"numerators": "!"}, {"numerators": None}, {"names": []}, {"where": 7}, {"exclude": "x"},
        {"exclude": ["x"] * 10_001}, {"references": ["x", "y"]}, {"weights": good["numerators"][:-4]},
        {"more": 1}, {"looser": 0.5}, {"looser": True}, {"looser": 1e30}, {"looser": "1"},
    ):  # fmt: skip
        answer = client("POST", "/v1/shard/search", {**good, **change})
        assert answer.status == 422 and len(answer.body) < 1000, change
    assert client("POST", "/v1/shard/search", "[" * 300_000, Content_Type="application/json").status == 413
    assert client("POST", "/v1/shard/search", "no", Content_Type="application/json").status == 422
    for ids in (7, "sku-1", [7], ["x"] * 257):
        assert client("POST", "/v1/shard/items", {"ids": ids}).status == 422
    assert client("POST", "/v1/shard/items", {"ids": ["nobody"] * 256}).json == {"items": [None] * 256}
    assert client("POST", "/v1/shard/search", good).status == 200
    wide = QueryTerms(np.ones((1, 1, 9), np.float32), None, ("a",))
    answer = client("POST", "/v1/shard/search", json.loads(told_question(wide, 3, None, [], References())))
    assert answer.kind == "invalid-argument" and "9" in answer.json["detail"]


@pytest.mark.parametrize(("dtype", "tokens"), [("float32", 1), ("float16", 3), ("int8", 1)])
def test_every_bit_arrives(tmp_path: Path, dtype: str, tokens: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, tokens, DIM))
    with Gallery.create(tmp_path / "g", dimension=DIM, dtype=dtype, tokens_per_item=tokens) as gallery:
        gallery.add_vectors(ids=names(30), vectors=rows if tokens > 1 else rows[:, 0])
        shard = LocalShard(gallery)
        terms = QueryTerms(
            rng.standard_normal((2, 2, DIM)).astype(np.float32), np.ones((2, 2, DIM), np.float32), ("a", "b")
        )
        held, nothing = shard.held(["i3", "nobody"])
        assert isinstance(held, Held) and nothing is None
        references = References([None, held.vector], 20.0)
        asked = read_question(told_question(terms, 7, {"number": 3}, ["x"], references))
        assert np.array_equal(asked.terms.numerators, terms.numerators) and asked[1:4] == (
            7,
            {"number": 3},
            ["x"],
        )
        assert asked.references.looser == 20 and asked.references.rows[0] is None
        assert np.array_equal(asked.references.rows[1], held.vector)
        found = shard.search(terms, 40, None, ["i5"], references)
        again = read_found(json.dumps(told_found(found)).encode(), 2, 2, 40)
        assert found[1] == again[1] and found[3:] == again[3:]
        for one, other in zip([*found.top, found.same], [*again.top, again.same], strict=True):
            assert (one is other is None) or (one.tobytes() == other.tobytes() and one.dtype == other.dtype)
        back, nothing = read_held(json.dumps(told_held([held, None])).encode(), 2)
        assert nothing is None and back is not None and np.array_equal(back.vector, held.vector)
        assert back.rows.dtype == np.dtype(dtype) and back.told() == held.told()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 99, 1]}, {"scores": ""}, {"rows": None}, {"items": []}, {"items": [[]]}, {"size": -1},
        {"generation": "1"}, {"fingerprint": 7}, {"same": "AAAA"}, {"tokens": "AA=="},
        {"items": [[["i", {}, 7]]]},
    ],
)  # fmt: skip
def test_answers_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    with filled(tmp_path / "g", 9) as gallery:
        terms = QueryTerms(np.ones((1, 1, DIM), np.float32), None, ("a",))
        said = told_found(LocalShard(gallery).search(terms, 2, None, []))
        assert read_found(json.dumps(said).encode(), 1, 1, 2).size == 9
        with pytest.raises(CirError) as raised:
            read_found(json.dumps({**said, **change}).encode(), 1, 1, 2)
        assert len(str(raised.value)) < 600


ODD: list[Any] = [None, True, -1, 1 << 70, 1.5, "", "x", "\ud800", [], [[]], [None], {}, {"a": {}}]


@pytest.mark.parametrize("reader", ["found", "held", "about", "question"])
def test_any_value_in_any_field_is_refused_or_read(tmp_path: Path, reader: str) -> None:
    with filled(tmp_path / "g", 5) as gallery:
        shard = LocalShard(gallery)
        terms = QueryTerms(vectors(2)[:, None], None, ("dot",))
        said: Any = {
            "found": lambda: told_found(shard.search(terms, 3, None, [])),
            "held": lambda: told_held(shard.held(names(1)))["items"][0],
            "about": lambda: told_about(shard.about()),
            "question": lambda: json.loads(told_question(terms, 3, None, [], References())),
        }[reader]()
    read: Any = {
        "found": lambda body: read_found(body, 2, 1, 3),
        "held": lambda body: read_held(b'{"items": [%b]}' % body, 1),
        "about": lambda body: read_about(body, "there"),
        "question": read_question,
    }[reader]
    read(json.dumps(said).encode())
    for field in said:
        for odd in ODD:
            with contextlib.suppress(CirError):
                read(json.dumps({**said, field: odd}).encode())


@pytest.mark.parametrize("host", ["a" * 100, "a..b", "xn--\N{SNOWMAN}"])
def test_a_host_whose_name_is_none(host: str) -> None:
    with pytest.raises(CirError):
        HttpShard(f"http://{host}:80").about(1.0)


def test_an_answer_is_ranked_and_its_missing_places_are_behind_it(tmp_path: Path) -> None:
    """What no scorer answers is no answer: rows behind a gap, scores of no row, terms that are no numbers."""
    with filled(tmp_path / "g", 9) as gallery:
        shard = LocalShard(gallery)
        terms = QueryTerms(vectors(1)[:, None], None, ("dot",))
        found = shard.search(terms, 4, {"number": [0, 1, 2]}, [])
        assert found.top.rows[0, 3] == -1 and (found.top.rows[0, :3] >= 0).all()

        def read(size: int | None = None, **places: tuple[int, Any]) -> Found:
            top = found.top._replace(**{name: getattr(found.top, name).copy() for name in places})
            for name, (place, value) in places.items():
                getattr(top, name)[0, place] = value
            said = told_found(found._replace(top=top, size=found.size if size is None else size))
            return read_found(json.dumps(said).encode(), 1, 1, 4)

        assert read().items == found.items
        for wrong in (
            {"rows": (0, -1)}, {"scores": (3, 9.0)}, {"scores": (3, np.nan)}, {"scores": (3, np.inf)},
            {"scores": (0, np.inf)}, {"scores": (2, 9.0)}, {"terms": (1, np.nan)}, {"terms": (1, np.inf)},
            {"size": 2},
        ):  # fmt: skip
            with pytest.raises(CirError):
                read(**wrong)  # type: ignore[arg-type]


def test_a_filter_means_the_same_elsewhere(served: tuple[Path, list[Running]]) -> None:
    """Whatever a dictionary may hold is sent as the values that it means, and refused as it is here."""
    bundle, services = served
    filters: list[Any] = [
        {"price": np.int64(5)}, {"price": {1, 2, 3}}, {"price": np.arange(9)}, {"price": {"<": float("inf")}},
        {"price": {">": -(10**5000)}}, {"price": Decimal("7")}, {"colour": np.array(["red", "blue"])},
        {"colour": {"null": np.bool_(False)}}, {"colour": {"<": date(2024, 5, 17)}},
        {"$or": [{"price": {"<": np.float32(4)}}, {"$not": {"price": {"in": (3, None)}}}]},
        MappingProxyType({"price": 3}), "price < 4",
        {5: 1}, {True: 1}, {None: 1}, {"$or": [{1: 5}]}, {"price": float("nan")}, {"price": {1: 5}},
        {"price": np.ma.array([1, 2], mask=[0, 1])}, {"price": 1j},
    ]  # fmt: skip
    query = np.ones((1, 8))
    with (
        ShardedSearcher(None, [url(service) for service in services]) as far,
        ShardedSearcher(None, bundle.parent / "shop.shards") as near,
    ):
        found = 0
        for where in filters:
            said = []
            for searcher in (far, near):
                try:
                    said.append(searcher.search_vectors(query, 50, where)[0].ids)
                except UsageError as error:
                    said.append([str(error)])
            assert said[0] == said[1], where
            found += len(said[0])
        assert found > 100


def test_as_many_hits_as_the_service_allows_though_some_are_left_out(tmp_path: Path) -> None:
    """A refined Hit at the limit asked for one more and was refused, as was a reference with copies."""
    bundle = make_gallery(tmp_path)
    with Engine(bundle, "cpu", 1) as engine:
        picture = tmp_path / "picture03.png"
        copies = np.repeat(engine.encode_images([picture]), 30, axis=0)
        with Gallery.open(tmp_path / "artemis.gallery") as gallery:
            gallery.add_vectors(ids=names(30, "copy"), vectors=copies)
            near = ShardedSearcher(engine, [gallery])
            with running(bundle, shard=True, max_k=5) as service:
                far = ShardedSearcher(engine, [HttpShard(url(service))])
                for searcher in (near, far):
                    assert len(searcher.query(picture, "is red", k=5)) == 5
                ids = [s.query(picture, "is red", k=5, exclude_reference=True).ids for s in (near, far)]
                assert ids[0] == ids[1] and len(ids[0]) == 5 and not any("copy" in found for found in ids[0])
                ids = [s.query(s.item("sku-5"), "is red", k=5).ids for s in (near, far)]
                assert ids[0] == ids[1] and len(ids[0]) == 5
                far.close()
            near.close()


def test_no_hit_of_another_bundle_is_refined(tmp_path: Path) -> None:
    """A replica that was changed over gives no row to a query of the others."""

    class Other:
        fingerprint, dimension = "other", DIM

    with filled(tmp_path / "g", fingerprint="one") as gallery:
        gallery.backup(tmp_path / "copy")
        with Gallery.open(tmp_path / "copy") as copy:
            with ShardedSearcher(None, [[LocalShard(gallery), LocalShard(copy)]], deadline=5) as searcher:
                assert {searcher.item("i1").id for _ in range(4)} == {"i1"}
                other: Any = Other()
                reencoding = gallery.reencoding(other)
                reencoding.add(reencoding.missing().tolist(), vectors(10, 5))
                assert reencoding.finish()
                source = searcher._source()
                kept = copy.snapshot().vector(1)
                for _ in range(4):
                    (held,) = source.held(["i1"])
                    assert isinstance(held, Held) and np.array_equal(held.vector, kept)
            (back,) = read_held(json.dumps(told_held(LocalShard(gallery).held(["i1"]))).encode(), 1)
            assert back is not None and back.fingerprint == "other"


def test_keys_and_filters_that_cannot_be_sent() -> None:
    for key in ("two\r\nlines", "sch\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel", 5):
        with pytest.raises(UsageError, match="API key"):
            HttpShard("http://127.0.0.1:1", key=key)  # type: ignore[arg-type]
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"$not": deep}
    terms = QueryTerms(vectors(1)[:, None], None, ("dot",))
    with pytest.raises(UsageError, match="nested more than 64 deep"):
        told_question(terms, 3, deep, [], References())


def test_a_server_that_talks_nonsense_is_no_shard() -> None:
    """Whatever it says, what comes out is typed, and another replica may answer."""
    answers = [
        b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b"HTTP/1.1 503 x\r\nContent-Length: 1\r\n\r\nx",
    ]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for said in answers:
                with listening.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        shard = HttpShard(f"http://127.0.0.1:{listening.getsockname()[1]}")
        for _ in answers:
            with pytest.raises(ShardError):
                shard.about()
        thread.join()
        long = b'{"detail": "%b"}' % (b"x" * 100_000)
        answers = [b"HTTP/1.1 422 x\r\nContent-Length: %d\r\n\r\n%b" % (len(long), long)]
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UsageError, match="xxx") as raised:
            shard.about()
        assert len(str(raised.value)) < 2100
        thread.join()
    for wrong in ("ftp://x", "http://", "http://x/y", "http://x:99999999", 7, ""):
        with pytest.raises(UsageError, match="address of a shard"):
            HttpShard(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="timeout"):
        HttpShard("http://x", timeout=0)


@pytest.mark.parametrize(
    "began", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"]
)
def test_an_answer_that_trickles(began: bytes) -> None:
    """A byte at a time is within every time-out of a connection, and never the whole answer."""

    def trickle() -> None:
        with listening.accept()[0] as connection, contextlib.suppress(OSError):
            connection.sendall(began)
            while not over.wait(0.05):
                connection.sendall(b"x")

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            shard = HttpShard(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.5)
            with pytest.raises(ShardError, match="timed out"):
                shard.about()
        finally:
            over.set()
            thread.join()
