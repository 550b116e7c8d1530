"""Items that are put, changed and deleted over HTTP, beside whoever else writes."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.commands.index import main as cir_index
from cir_infer.errors import UsageError
from cir_infer.gallery.catalogue.catalogue import Catalogue, OutcomeUnknownError
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.disk.outcome import tell_durable
from cir_infer.gallery.store import Store
from cir_infer.serving.opened import open_searcher
from cir_infer.serving.settings import Settings
from tests.serving.support import COUNT, Client, address, form, png, running, together


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


def test_fields_of_an_item_change(own: Path) -> None:
    with running(own, writable=True) as (client, *_):
        before = client("GET", address("sku-3")).json
        answer = client("PATCH", address("sku-3"), {"metadata": {"price": 1.5, "colour": None, "new": ["a"]}})
        assert (answer.status, answer.json) == (200, {"id": "sku-3"})
        after = client("GET", address("sku-3")).json
        assert after == before | {"metadata": {"price": 1.5, "new": ["a"]}}
        assert client("GET", f"/v1/items?where={quote('price = 1.5')}").json["matching"] == 1
        generation = client("GET", "/v1/info").json["gallery"]["generation"]
        for item, body, kind in (
            ("gone", {"metadata": {"price": 1}}, "not-found"),
            ("sku-3", {"metadata": {"a": {"b": 1}, "a.b": 2}}, "invalid-argument"),
            ("sku-3", {}, "invalid-argument"),
            ("sku-3", {"metadata": {}, "image": ""}, "invalid-argument"),
            ("sku-3", b"no JSON", "unsupported-media-type"),
        ):
            types = {} if isinstance(body, dict) else {"Content_Type": "image/png"}
            assert client("PATCH", address(item), body, **types).kind == kind, (item, body)
        assert client("GET", "/v1/info").json["gallery"]["generation"] == generation
        # What only does not go with the rest of the item's metadata is the caller's fault, too.
        assert client("PATCH", address("sku-4"), {"metadata": {"size": {"height": 1}}}).status == 200
        answer = client("PATCH", address("sku-4"), {"metadata": {"size.height": 2}})
        assert answer.kind == "invalid-argument" and "size.height" in answer.json["detail"]
    with Gallery.open(own.with_suffix(".gallery"), read_only=True) as gallery:
        assert gallery.held(["sku-3"])["sku-3"].source == str(own.parent / "picture03.png")
        assert gallery.verify().ok


@pytest.mark.parametrize("change", ["describe", "merge", "picture", "delete"])
def test_a_change_beside_another_service_is_before_or_behind_it(
    own: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The other one replaces the item between any two looks of this one at its catalogue."""
    reading = Catalogue.reading
    looks, at, replaced = 0, 0, False

    def beside(self: Catalogue) -> Any:
        nonlocal looks, replaced
        if threading.current_thread().name == "cir-serve-changes" and not replaced:
            looks += 1
            if looks > at:
                monkeypatch.undo()
                with contextlib.suppress(GalleryBusyError):
                    replace_item()
                    replaced = True
                monkeypatch.setattr(Catalogue, "reading", beside)
        return reading(self)

    def replace_item() -> None:
        place = Path(f"{own.with_suffix('.gallery')}.images") / "ff" / f"ff{at:022x}"  # as a service names it
        place.parent.mkdir(exist_ok=True)
        with Gallery.open(own.with_suffix(".gallery"), wait=0) as other, other.writing():
            place.write_bytes(png(300 + at))
            old = other.held(["sku-1"])
            other.add_vectors(
                ids=["sku-1"],
                vectors=np.full((1, other.dimension), 1 + at, np.float32),
                metadata=[{"theirs": at}],
                sources=[place],
                stamps=[f"{at}"],
                existing="replace",
            )
            for known in old.values():
                Path(known.source or "").unlink()

    with running(own, writable=True) as (client, *_):
        for at in range(8):
            client("PUT", address("sku-1"), png(200 + at), Content_Type="image/png")
            client("PUT", address("sku-1"), {"metadata": {"price": at}})
            assert len(pictures_of(own)) == 1
            looks, replaced = 0, False
            monkeypatch.setattr(Catalogue, "reading", beside)
            match change:
                case "describe":
                    answer = client("PUT", address("sku-1"), {"metadata": {"ours": at}})
                case "merge":
                    answer = client("PATCH", address("sku-1"), {"metadata": {"ours": at}})
                case "picture":
                    answer = client("PUT", address("sku-1"), png(500 + at), Content_Type="image/png")
                case "delete":
                    answer = client("DELETE", address("sku-1"))
            monkeypatch.undo()
            assert answer.status in (200, 204), answer
            if not replaced:
                replace_item()
            with Gallery.open(own.with_suffix(".gallery"), read_only=True) as gallery:
                snapshot, known = gallery.snapshot(), gallery.held(["sku-1"]).get("sku-1")
                found: Any = None
                if known is not None:
                    found = snapshot.metadata([snapshot.row("sku-1") or 0])[0], known.stamp
            first = {
                "describe": ({"ours": at}, f"{at}"),
                "merge": ({"theirs": at, "ours": at}, f"{at}"),
                "picture": ({"theirs": at}, None),
                "delete": None,
            }
            assert found in (({"theirs": at}, f"{at}"), first[change]), at
            # No picture is left that no item names, and the item's own is there.
            assert [*map(str, pictures_of(own))] == ([] if known is None else [known.source]), at


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


def test_changes_of_many_kinds_wait_for_few_commits(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind is a commit, in whatever order they come, and what comes later of an item is behind it."""
    monkeypatch.setattr(Gallery, "open", functools.partial(Gallery.open, wait=120))
    with running(own, writable=True) as (client, service, _):
        before = client("GET", "/v1/info").json["gallery"]["generation"]
        picture = {"Content_Type": "image/png"}
        calls: list[Any] = []
        for n in range(0, 24, 4):
            calls += [
                lambda n=n: client("PUT", address(f"sku-{n}"), {"metadata": {"told": n}}),
                lambda n=n: client("PUT", address(f"sku-{n + 1}"), png(200 + n), **picture),
                lambda n=n: client("PATCH", address(f"sku-{n + 2}"), {"metadata": {"told": n}}),
                lambda n=n: client("DELETE", address(f"sku-{n + 3}")),
            ]
        with Gallery.open(own.with_suffix(".gallery")) as other, other.writing():
            answers: list[Any] = []
            thread = threading.Thread(target=lambda: answers.extend(together(calls)))
            thread.start()
            until = time.monotonic() + 60
            while service.metrics.open._value.get() < len(calls) and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(0.3)  # they are decoded
        thread.join()
        assert [answer.status for answer in answers] == [200, 200, 200, 204] * 6
        info = client("GET", "/v1/info").json["gallery"]
        assert info["items"] == COUNT - 6
        # The first waits alone for the other writer; behind it there are four kinds, of which pictures may
        # still be on their way.
        assert info["generation"] <= before + 10
        where = quote("told >= 0")
        assert client("GET", f"/v1/items?where={where}").json["matching"] == 12


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

        describe = Gallery.set_metadata

        def before(self: Gallery, *what: Any, **how: Any) -> int:
            monkeypatch.undo()
            putting.start()
            putting.join(0.5)  # it has its turn behind this one
            return describe(self, *what, **how)

        def put() -> None:
            answers.append(other("PUT", "/v1/items/new", png(102), Content_Type="image/png").status)

        putting = threading.Thread(target=put)
        monkeypatch.setattr(Gallery, "set_metadata", before)
        assert mine("PUT", "/v1/items/new", {"metadata": {"price": 10}}).status == 200
        putting.join()
        assert answers == [200, 200]
        item = mine("GET", "/v1/items/new").json
        assert item["metadata"] == {"price": 10} and mine("GET", item["image"]).status == 200
        found = mine.form("/v1/search", [("text", "is red")], png(102)).json
        assert found["reference_id"] == "new"
    assert [file.read_bytes() for file in pictures_of(own)] == [png(102)] and images.is_dir()


def test_photos_in_the_folder_of_pictures_stay(own: Path) -> None:
    """Those two folders deep were taken for pictures of the service: a DELETE removed somebody's photo."""
    photos = own.parent / "photos"
    names = ["dresses/1.png", f"ab/{'0' * 24}", f"ab/{'ab' * 12}.png"]
    with (
        Engine(own, device="cpu", threads=1) as engine,
        Gallery.open(own.with_suffix(".gallery"), engine) as gallery,
    ):
        for name in names:
            (photos / name).parent.mkdir(parents=True, exist_ok=True)
            (photos / name).write_bytes(png(400))
        gallery.add([photos / name for name in names], ids=names)
    with running(own, writable=True, images=str(photos)) as (client, *_):
        assert client("PUT", address(names[0]), png(401), Content_Type="image/png").status == 200
        for name in names:
            assert client("DELETE", address(name)).status == 204
    assert sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*") if file.is_file()) == (
        sorted(names)
    )


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
