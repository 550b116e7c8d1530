"""Items over HTTP: one, a list, pictures; put and deleted."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from cir_infer import Engine, Gallery, Searcher
from cir_infer.commands.index import main as cir_index
from cir_infer.errors import UsageError
from cir_infer.gallery.catalogue.catalogue import OutcomeUnknownError
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.disk.outcome import tell_durable
from cir_infer.gallery.store import Store
from cir_infer.serving.opened import open_searcher
from cir_infer.serving.settings import Settings
from tests.bundles import write_tiny_bundle
from tests.serving.support import COUNT, ODD_IDS, Client, form, png, running, together


def address(item: str) -> str:
    return f"/v1/items/{quote(item, safe='')}"


@pytest.mark.parametrize("item", ["sku-7", *ODD_IDS])
def test_an_item(client: Client, item: str) -> None:
    answer = client("GET", address(item))
    assert answer.status == 200, answer
    assert answer.json["id"] == item
    # A browser takes the way up for what it says, so there is no such address.
    assert (answer.json["image"] is None) == (item == "..")
    picture = client("GET", answer.json["image"] or f"{address(item)}/image")
    assert (picture.status, picture.headers["content-type"]) == (200, "image/jpeg")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/gone",
        "/v1/items/gone/image",
        "/v1/items/sku-1/other",
        "/v1/items/a/b.png",  # a slash inside an id is %2F
        "/v1/items/..%2F..%2Fetc%2Fpasswd/image",
        "/v1/items/%00/image",
        "/v1/items/%2Fetc%2Fpasswd",
        "/v1/items/" + "x" * 5000,
        "/assets/../settings.py",
        "/assets/..%2Fsettings.py",
        "/assets/%2e%2e/settings.py",
        "//etc/passwd",
    ],
)
def test_what_is_not_there(client: Client, path: str) -> None:
    answer = client("GET", path)
    assert (answer.status, answer.kind) == (404, "not-found")


def test_an_id_that_is_not_utf8(client: Client) -> None:
    assert client("GET", "/v1/items/%ff%fe").kind == "malformed-request"


def test_browsing_shows_every_item_once(client: Client) -> None:
    seen: list[str] = []
    after = ""
    while True:
        answer = client("GET", f"/v1/items?limit=7{after}").json
        assert answer["matching"] == COUNT
        seen += [item["id"] for item in answer["items"]]
        if answer["after"] is None:
            break
        after = f"&after={answer['after']}"
    assert len(seen) == len(set(seen)) == COUNT
    assert seen[0] == "sku-0"


def test_browsing_with_a_filter_and_by_chance(client: Client) -> None:
    where = quote("colour = red and price < 10")
    answer = client("GET", f"/v1/items?where={where}").json
    assert [item["metadata"]["price"] for item in answer["items"]] == [1, 3, 5, 7, 9]
    chosen = client("GET", f"/v1/items?order=random&limit=4&where={where}").json
    assert len({item["id"] for item in chosen["items"]}) == 4
    assert all(item["metadata"]["price"] in (1, 3, 5, 7, 9) for item in chosen["items"])


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "after=-1", "order=up", "other=1", "limit=1&limit=2"]
)
def test_wrong_parameters(client: Client, query: str) -> None:
    assert client("GET", f"/v1/items?{query}").kind == "invalid-argument"


def test_browsing_goes_on_where_items_were_removed(own: Path) -> None:
    with running(own) as (client, *_):
        first = client("GET", "/v1/items?limit=10").json
        with Gallery.open(own.with_suffix(".gallery")) as gallery:
            gallery.remove([f"sku-{number}" for number in range(5, 20)])
            gallery.compact()
        rest = client("GET", f"/v1/items?limit=100&after={first['after']}").json
        assert rest["items"][0]["id"] == "sku-20"
        assert rest["matching"] == COUNT - 15


def test_fields(client: Client) -> None:
    fields = {field["name"]: field for field in client("GET", "/v1/fields").json["fields"]}
    assert set(fields) == {"colour", "price"}
    assert fields["price"]["greatest"] == COUNT - 1


def test_pictures(client: Client) -> None:
    path = client("GET", "/v1/items/sku-3").json["image"]
    answer = client("GET", path + "&size=100")
    with Image.open(io.BytesIO(answer.body)) as image:
        assert image.size == (24, 30)  # never larger than the image is
    again = client("GET", path + "&size=100", If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    other = client("GET", path + "&size=1000")
    assert other.headers["etag"] != answer.headers["etag"]
    assert client("GET", path + "&size=-1").kind == "invalid-argument"


def test_a_picture_that_cannot_be_read_names_no_path(own: Path) -> None:
    (own.parent / "picture05.png").write_bytes(b"no image")
    (own.parent / "picture06.png").unlink()
    with running(own) as (client, *_):
        for item in ("sku-5", "sku-6"):
            answer = client("GET", f"/v1/items/{item}/image")
            assert answer.kind == "not-found"
            assert str(own.parent) not in answer.body.decode()


# ---- changes


def test_a_service_that_only_reads(client: Client) -> None:
    for method, body in (("PUT", png(1)), ("DELETE", None)):
        answer = client(method, "/v1/items/new", body, Content_Type="image/png")
        assert (answer.status, answer.kind) == (403, "forbidden")


def test_put_ask_and_delete(own: Path) -> None:
    with running(own, writable=True) as (client, *_):
        new = png(100)
        body, kind = form([("metadata", '{"colour": "green", "price": 7.5}')], new)
        answer = client("PUT", address("new/one"), body, Content_Type=kind)
        assert (answer.status, answer.json) == (201, {"id": "new/one", "replaced": False})
        found = client.form("/v1/search", [("text", "is red"), ("where", "colour = green")], new).json
        assert [hit["id"] for hit in found["hits"]] == ["new/one"]
        assert found["reference_id"] == "new/one"
        picture = client("GET", found["hits"][0]["image"])
        assert picture.status == 200

        changed = client("PUT", address("new/one"), {"metadata": {"price": 9}})
        assert (changed.status, changed.json["replaced"]) == (200, True)
        item = client("GET", address("new/one")).json
        assert item["metadata"] == {"price": 9}
        assert item["image"] == found["hits"][0]["image"]  # the image stays

        files = list(Path(f"{own.with_suffix('.gallery')}.images").rglob("*"))
        replaced = client("PUT", address("new/one"), png(101), Content_Type="image/png")
        assert replaced.status == 200
        assert client("GET", address("new/one")).json["metadata"] == {"price": 9}
        after = [file for file in Path(f"{own.with_suffix('.gallery')}.images").rglob("*") if file.is_file()]
        assert len(after) == 1
        assert after[0] not in files

        assert client("DELETE", address("new/one")).status == 204
        assert client("DELETE", address("new/one")).kind == "not-found"
        assert client("GET", address("new/one")).kind == "not-found"
        assert not after[0].exists()
        # Images that the service did not write stay.
        assert client("DELETE", address("sku-1")).status == 204
        assert (own.parent / "picture01.png").exists()
    with Gallery.open(own.with_suffix(".gallery"), read_only=True) as gallery:
        assert gallery.verify().ok


def test_what_could_not_be_written_is_said_at_the_start(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = own.with_suffix(".gallery")
    settings = Settings(str(own), str(gallery), writable=True)
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, *rest, **more: path != gallery and real(path, *rest, **more)
    )
    with pytest.raises(UsageError, match="cannot be written to, and --writable needs"):
        open_searcher(settings)
    monkeypatch.undo()
    Path(f"{gallery}.images").write_text("in the way")
    with pytest.raises(UsageError, match="is no folder"):
        open_searcher(settings)
    open_searcher(replace(settings, writable=False)).retire()


def test_a_disk_that_takes_no_picture_is_one_line_of_the_log(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(own, writable=True) as (client, *_):
        Path(f"{own.with_suffix('.gallery')}.images").write_text("in the way")
        answer = client("PUT", "/v1/items/new", png(1), Content_Type="image/png")
        assert (answer.status, answer.kind) == (500, "internal")
        assert client("GET", "/v1/items/new").kind == "not-found"
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "a picture cannot be kept here (" in told.getMessage() and told.exc_info is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("unusable-image", b"no image"),
        ("invalid-argument", {"metadata": {"a": {"b": 1}, "a.b": 2}}),
        ("invalid-argument", {}),
        ("not-found", {"metadata": {"price": 1}}),
        (
            "invalid-argument",
            {"metadata": {"a": [{"b": float("nan")}]}, "image": base64.b64encode(png(1)).decode()},
        ),
        ("unsupported-media-type", "text"),
    ],
)
def test_a_wrong_change_changes_nothing(own: Path, kind: str, body: object) -> None:
    with running(own, writable=True) as (client, *_):
        before = client("GET", "/v1/info").json["gallery"]
        kind_of = {"text": "text/plain"}.get(str(body), "image/png")
        types = {} if isinstance(body, dict) else {"Content_Type": kind_of}
        answer = client("PUT", "/v1/items/new", body, **types)
        assert answer.status < 500, answer
        assert answer.kind == kind
        assert client("GET", "/v1/info").json["gallery"] == before
    assert not [file for file in Path(f"{own.with_suffix('.gallery')}.images").rglob("*") if file.is_file()]


def test_changes_that_wait_share_a_commit(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first of them waits until the last has arrived.
    monkeypatch.setattr(Gallery, "open", functools.partial(Gallery.open, wait=120))
    with running(own, writable=True) as (client, service, _):
        before = client("GET", "/v1/info").json["gallery"]["generation"]
        with Gallery.open(own.with_suffix(".gallery")) as other, other.writing():
            calls = [
                lambda n=n: client("PUT", f"/v1/items/new-{n}", png(200 + n), Content_Type="image/png")
                for n in range(12)
            ]
            answers: list[object] = []
            thread = threading.Thread(target=lambda: answers.extend(together(calls)))
            thread.start()
            until = time.monotonic() + 60
            while service.metrics.open._value.get() < 12 and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(0.2)  # they are decoded
        thread.join()
        assert [answer.status for answer in answers] == [201] * 12  # type: ignore[attr-defined]
        info = client("GET", "/v1/info").json["gallery"]
        assert info["items"] == COUNT + 12
        assert info["generation"] < before + 12
    with Searcher(Engine(own, device="cpu"), own.with_suffix(".gallery")) as searcher:
        assert searcher.query(png(203), "is red", 52).reference_id == "new-3"


def pictures_of(bundle: Path) -> list[Path]:
    return [file for file in Path(f"{bundle.with_suffix('.gallery')}.images").rglob("*") if file.is_file()]


def test_what_another_worker_put_meanwhile_is_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read before the other's commit and written behind it, it took back what had been answered."""
    images = Path(f"{own.with_suffix('.gallery')}.images")
    with running(own, writable=True) as (mine, service, _), running(own, writable=True) as (other, *_):
        assert mine("PUT", "/v1/items/new", png(100), Content_Type="image/png").status == 201
        engine = service.current._opened.searcher.engine
        encode = engine.encode_prepared

        def beside(prepared: Any) -> Any:
            answers.append(other("PUT", "/v1/items/new", {"metadata": {"price": 9}}).status)
            return encode(prepared)

        answers: list[int] = []
        monkeypatch.setattr(engine, "encode_prepared", beside)
        assert mine("PUT", "/v1/items/new", png(101), Content_Type="image/png").status == 200
        monkeypatch.undo()
        assert answers == [200] and mine("GET", "/v1/items/new").json["metadata"] == {"price": 9}

        add = Gallery.add_vectors

        def before(self: Gallery, **what: Any) -> int:
            monkeypatch.undo()
            putting.start()
            putting.join(0.5)  # it has its turn behind this one
            return add(self, **what)

        def put() -> None:
            answers.append(other("PUT", "/v1/items/new", png(102), Content_Type="image/png").status)

        putting = threading.Thread(target=put)
        monkeypatch.setattr(Gallery, "add_vectors", before)
        assert mine("PUT", "/v1/items/new", {"metadata": {"price": 10}}).status == 200
        putting.join()
        assert answers == [200, 200]
        item = mine("GET", "/v1/items/new").json
        assert item["metadata"] == {"price": 10} and mine("GET", item["image"]).status == 200
        found = mine.form("/v1/search", [("text", "is red")], png(102)).json
        assert found["reference_id"] == "new"
    assert [file.read_bytes() for file in pictures_of(own)] == [png(102)] and images.is_dir()


@pytest.mark.parametrize("durable", [False, True])
def test_a_picture_stays_where_its_commit_may_be_there(
    own: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    add = Gallery.add_vectors

    def failing(self: Gallery, **what: Any) -> int:
        add(self, **what)
        if not durable:
            raise OutcomeUnknownError("the disk failed in the last step")
        error = RuntimeError("behind the commit")
        tell_durable(error, "it is there")
        raise error

    with running(own, writable=True) as (client, *_):
        monkeypatch.setattr(Gallery, "add_vectors", failing)
        assert client("PUT", "/v1/items/new", png(100), Content_Type="image/png").status == 500
        monkeypatch.undo()
        assert client("GET", "/v1/items/new/image").status == 200


def test_who_waits_for_another_writer_waits_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes that could not be made together were tried one by one, each with a wait of its own."""
    waits: list[int] = []
    with running(own, writable=True) as (client, service, _):

        def busy(_: Store) -> Any:
            waits.append(1)
            until = time.monotonic() + 60
            while service.metrics.open._value.get() < 9 and len(waits) == 1 and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(0.2)  # they are decoded
            raise GalleryBusyError("another process is writing")

        monkeypatch.setattr(Store, "writing", busy)
        calls = [lambda n=n: client("DELETE", f"/v1/items/sku-{n}") for n in range(9)]
        answers: list[Any] = together(calls)
        assert [(answer.status, answer.kind) for answer in answers] == [(503, "overloaded")] * 9
    assert len(waits) < 9


def test_metadata_that_was_put_outlasts_the_next_indexing(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The item had lost its stamp, so `cir-index` took the picture for a changed one and its own fields."""
    (own.parent / "photos").mkdir()
    (own.parent / "photos" / "a.png").write_bytes(png(300))
    indexing = [str(own), str(own.parent / "photos"), "--device", "cpu", "--workers", "0", "--json"]
    assert cir_index(indexing) == 0
    with running(own, writable=True) as (client, *_):
        assert client("PUT", "/v1/items/a.png", {"metadata": {"price": 3}}).status == 200
        capsys.readouterr()
        assert cir_index(indexing) == 0
        assert json.loads(capsys.readouterr().out)["unchanged"] == 1
        assert client("GET", "/v1/items/a.png").json["metadata"] == {"price": 3}


def test_changes_of_others_show_at_once(own: Path) -> None:
    with running(own) as (client, *_), Engine(own, device="cpu") as engine:
        with Gallery.open(own.with_suffix(".gallery"), engine) as gallery:
            gallery.add([own.parent / "picture00.png"], ids=["twin"])
            assert client("GET", "/v1/items/twin").status == 200
            encoded = base64.b64encode(png(0)).decode()
            assert "twin" in [
                hit["id"] for hit in client.search(image=encoded, text="is red", k=40).json["hits"]
            ]
            gallery.remove(["twin"])
        assert client("GET", "/v1/items/twin").kind == "not-found"


@pytest.mark.parametrize("turned", [False, True])
def test_pictures_are_turned_where_the_model_turned_them(tmp_path: Path, turned: bool) -> None:
    """All were upright, and what explained them lay over the picture as its pixels lie."""
    tag = Image.Exif()
    tag[0x112] = 6
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.jpg", exif=tag)
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    with (
        Engine(bundle, device="cpu", threads=1, exif_orientation=turned) as engine,
        Gallery.create(tmp_path / "b.gallery", engine) as gallery,
    ):
        gallery.add([tmp_path / "photo.jpg"], ids=["photo"])
    with running(bundle) as service:
        answer = service.client("GET", "/v1/items/photo/image?size=512")
    with Image.open(io.BytesIO(answer.body)) as image:
        assert image.size == ((40, 60) if turned else (60, 40))
