"""Images in object stores: a real client of S3 reads them from a store that is served here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Engine, Gallery
from cir_infer.commands.index import main as index_main
from cir_infer.errors import DatasetError, ImageError, UsageError
from cir_infer.indexing.items import Broken, Item
from cir_infer.indexing.sources import open_source
from cir_infer.inputs import remote
from cir_infer.inputs.images import load_image
from cir_infer.inputs.locations import Location, is_gone, same_file
from cir_infer.inputs.remote import below, checked_address, is_address, listed
from tests.bundles import write_tiny_bundle
from tests.indexing.object_store import Store, served
from tests.indexing.support import assert_rows_are_those_of, png, shard_of

pytest.importorskip("pyarrow")

PHOTOS = {"a.png": 1, "b c#1?%41+é.png": 2, "sub/deep/d.png": 3, "sub/e": 4}
"""Names below s3://shop/photos, with what they show; the last has no ending."""


@pytest.fixture(scope="module")
def shop() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, served(patch, "shop") as store:
        yield store


@pytest.fixture(autouse=True)
def store(shop: Store) -> Iterator[Store]:
    """The store with the photos and nothing else, nothing forbidden, read by a process that may."""
    remote.only(None)
    shop.objects.clear()
    shop.forbidden.clear()
    for name, seed in PHOTOS.items():
        shop.put(f"photos/{name}", png(seed))
    for name in ("photos/", "photos/sub/", "photos/.hidden.png", "photos/sub/read.me", "photos/sub/none"):
        shop.put(name, b"" if name.endswith("/") else b"no image, but long enough to be looked at")
    shop.requests.clear()
    shop.endless = shop.lazy = False
    yield shop
    remote.only(None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "b.cir")


def index(bundle: Path, gallery: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = index_main([str(bundle), *more, "--gallery", str(gallery), "--workers", "0", "--json"])
    out, err = capsys.readouterr()
    assert out, err
    said: dict[str, Any] = json.loads(out)
    return {**said, "code": code}


def test_a_folder_of_a_store(
    store: Store, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "g"
    said = index(bundle, place, "S3://shop/photos/", capsys=capsys)
    assert (said["code"], said["added"]) == (0, 4)
    assert said["left_out"] == {"hidden": 1, ".me": 1, "without an ending": 1}
    with Engine(bundle) as engine, Gallery.open(place, engine) as gallery:
        assert_rows_are_those_of(gallery, engine, {name: png(seed) for name, seed in PHOTOS.items()})
        sources = {item.id: item.source for item in gallery.snapshot().items(gallery.snapshot().live_rows())}
    assert sources["b c#1?%41+é.png"] == "s3://shop/photos/b%20c%231%3F%2541+%C3%A9.png"
    for name, seed in PHOTOS.items():
        assert Location.parse(sources[name] or "").read() == png(seed)

    store.requests.clear()
    said = index(bundle, place, "s3://shop/photos", capsys=capsys)
    assert (said["unchanged"], said["encoded"]) == (4, 0)
    fetched = [key for method, key in store.requests if method == "GET" and key.endswith(".png")]
    assert fetched == []
    # Written anew is another image, gone is gone, and a name is one whatever it needs in an address.
    store.put("photos/a.png", png(9), when=1_700_000_060)
    del store.objects["photos/b c#1?%41+é.png"]
    said = index(bundle, place, "s3://shop/photos", "--prune", capsys=capsys)
    assert (said["code"], said["replaced"], said["removed"], said["unchanged"]) == (0, 1, 1, 2)


def test_a_store_is_where_the_environment_says_now(store: Store) -> None:
    def names() -> set[str]:
        return {entry.name for entry in listed("s3://shop/photos")}

    here = names()
    with pytest.MonkeyPatch.context() as patch, served(patch, "shop") as other:
        other.put("photos/elsewhere.png", png(5))
        assert names() == {"elsewhere.png"}
    assert names() == here and "a.png" in here


def test_shards_and_single_images(
    store: Store, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shard_of(tmp_path / "s.tar", 3).read_bytes()
    store.put("more/s 1.tar", data)
    place = tmp_path / "g"
    sources = ["s3://shop/more/s 1.tar", "mine=s3://shop/photos/a.png"]
    said = index(bundle, place, *sources, capsys=capsys)
    assert (said["code"], said["added"]) == (0, 4)
    with Gallery.open(place, read_only=True) as gallery:
        assert sorted(gallery.ids) == [
            "mine/s3://shop/photos/a.png",
            *(f"s 1/000{number}.png" for number in range(3)),
        ]
        items = gallery.snapshot().items(gallery.snapshot().live_rows())
    told = {item.id: item for item in items}
    one = told["s 1/0001.png"]
    assert one.metadata == {"number": 1, "caption": "caption 1"}
    assert (one.source or "").startswith("s3://shop/more/s%201.tar#")
    store.requests.clear()
    assert Location.parse(one.source or "").read() == png(1) and len(store.requests) == 2  # its bytes alone
    store.put("more/s 1.tar", data[:600])
    said = index(bundle, place, sources[0], capsys=capsys)
    assert said["code"] == 1


def test_what_cannot_be_read(store: Store, bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """It is listed, and never taken for removed."""
    place = tmp_path / "g"
    index(bundle, place, "s3://shop/photos", capsys=capsys)
    store.forbidden |= {"photos/sub/deep", "photos/sub/e", "photos/a.png", "photos/new"}
    store.put("photos/a.png", png(8), when=1_700_000_060)
    store.put("photos/new", png(8))  # whether it is an image cannot be seen
    said = index(bundle, place, "s3://shop/photos", "--prune", capsys=capsys)
    assert (said["code"], said["removed"], said["unchanged"]) == (1, 0, 2)
    broken = [json.loads(line) for line in Path(said["broken_list"]).read_text().splitlines()]
    assert {one["id"]: one["source"] for one in broken} == {
        "sub/deep": "s3://shop/photos/sub/deep",
        "a.png": "s3://shop/photos/a.png",
        "new": "s3://shop/photos/new",
    }
    assert all(len(one["reason"]) < 1000 for one in broken)
    store.forbidden = {"photos"}
    with pytest.raises(DatasetError, match="cannot be asked"):
        open_source("s3://shop/photos/a.png")
    assert not is_gone("s3://shop/photos/a.png")
    store.forbidden.clear()
    assert is_gone("s3://shop/photos/none.png") and not is_gone("s3://shop/photos/a.png")
    assert not is_gone("s3://shop/photos")


def test_a_name_with_an_empty_part(
    store: Store, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pyarrow cannot name such objects; they are told and do not make others be told wrongly."""
    store.objects.clear()
    for name in ("x.png", "photos/a.png", "photos//b.png", "photos/c//d.png", "/e.png"):
        store.put(name, png(1))
    for folder, whole, broken in (
        ("s3://shop/photos", ["a.png"], ["s3://shop/photos//*", "s3://shop/photos/c//*"]),
        (
            "s3://shop",
            ["photos/a.png", "x.png"],
            ["s3://shop//*", "s3://shop/photos//*", "s3://shop/photos/c//*"],
        ),
    ):
        found = list(open_source(folder).items())
        assert sorted(one.id for one in found if isinstance(one, Item)) == whole
        left = [one for one in found if isinstance(one, Broken)]
        assert sorted(one.source for one in left) == broken
        assert all("without a name" in one.reason for one in left)
    store.put("photos/gone.png", png(2))
    index(bundle, tmp_path / "g", "s3://shop/photos", capsys=capsys)
    del store.objects["photos/gone.png"]
    said = index(bundle, tmp_path / "g", "s3://shop/photos", "--prune", capsys=capsys)
    assert (said["removed"], said["unchanged"], said["broken"]) == (1, 1, 2)


def test_a_large_object_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cir_infer.inputs.locations.MAX_IMAGE_BYTES", 10)
    store.requests.clear()
    with pytest.raises(ImageError, match="at most 10 are read"):
        Location("s3://shop/photos/a.png").read()
    assert [method for method, _ in store.requests] == ["HEAD"]
    monkeypatch.undo()
    with pytest.raises(ImageError, match="cut short"):
        Location("s3://shop/photos/a.png", 5, 1 << 20).read()
    with pytest.raises(ImageError, match="cannot be read"):
        Location("s3://shop/photos/gone.png").read()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("s3://", "not the name of a store"),
        ("s3:///photos", "not the name of a store"),
        ("s3://me:hidden@shop/photos", "keys and passwords"),
        ("s3://shop:9000/photos", "not the name of a store"),
        ("s3://shop?endpoint_override=http://10.0.0.1/photos", "not the name of a store"),
        ("s3://shop/photos?endpoint_override=10.0.0.1", "AWS_ENDPOINT_URL"),
        ("s3://shop/photos#1", "%23"),
        ("s3://shop/photos/../secret", "or .."),
        ("s3://shop/photos/%2e%2e/secret", "or .."),
        ("s3://shop/%ff", "UTF-8"),
        ("s3://shop/\ud800", "UTF-8"),
        ("s3://shop//photos", "empty part"),
        ("s3://me:hid/den@shop/photos", "not the name of a store"),
        ("s3://shop/photos?secret_key=hidden", "AWS_ENDPOINT_URL"),
        ("gs://me:hidden@shop/photos", "https://storage.googleapis.com"),
        ("abfss://shop:hidden@account.dfs.core.windows.net/x", "mount it as a folder"),
        ("https://shop.example/a.png?X-Amz-Signature=hidden", "no address of a store"),
        ("s3://shop/" + "x" * 100_000 + "?", "%3F"),
    ],
)
def test_what_is_no_address(store: Store, wrong: str, reason: str) -> None:
    """As a source, as a gallery has it, as a path: nothing is asked, and no secret is told."""
    with pytest.raises(UsageError, match=reason) as told:
        checked_address(wrong)
    with pytest.raises(UsageError) as told_of_source:
        open_source(wrong)
    for read in (lambda: Location(wrong).read(), lambda: load_image(wrong)):
        with pytest.raises((ImageError, UsageError)) as told_again:
            read()
        for message in map(str, (told.value, told_of_source.value, told_again.value)):
            assert len(message) < 1000 and not any(part in message for part in ("hidden", "hid/", "me:"))
    assert not store.requests


def test_an_address_has_one_spelling() -> None:
    for spelled in ("s3://shop/a%20b/c%2B.png", "S3://shop/a b/c+.png", "s3://shop/a%20b/c+.png/"):
        assert checked_address(spelled) == "s3://shop/a%20b/c+.png"
    assert checked_address("s3://shop/") == "s3://shop"
    assert below("s3://shop", "50%/a#1") == "s3://shop/50%25/a%231"
    place = Location("s3://shop/t.tar", 512, 7)
    assert Location.parse(str(place)) == place and place.remote and not is_address("/s3://shop/x")
    assert not same_file(Location("s3://shop/a"), Location("s3://shop/b"))
    with pytest.raises(UsageError, match="no such folder or object"):
        open_source("s3://shop/none/*.png")


def test_manifests_stay_here(store: Store, tmp_path: Path) -> None:
    store.put("list.jsonl", b'{"image": "a.png"}\n')
    with pytest.raises(UsageError, match="manifests are read from this machine"):
        open_source("s3://shop/list.jsonl")
    (tmp_path / "list.jsonl").write_text('{"image": "s3://shop/photos/a.png"}\n')
    (entry,) = open_source(str(tmp_path / "list.jsonl")).items()
    assert isinstance(entry, Broken) and "nothing is fetched" in entry.reason


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DatasetError, match="the store cannot be asked") as told:
        open_source("s3://shop/photos")
    assert len(str(told.value)) < 1000


def test_a_service_reads_what_it_was_told_to(store: Store, bundle: Path, tmp_path: Path) -> None:
    """Pictures are of images that the gallery names, in stores that whoever started the service names."""
    pytest.importorskip("fastapi")
    from tests.serving.support import running

    gallery_path = tmp_path / "b.gallery"
    with Engine(bundle) as engine, Gallery.create(gallery_path, engine) as gallery:
        row = engine.encode_images([png(1)])
        for item, source in (
            ("mine", "s3://shop/photos/a.png"),
            ("other", "s3://shop/photos2/a.png"),
            ("odd", "s3://shop/photos/../photos2/a.png"),
            ("away", "s3://elsewhere?endpoint_override=http%3A//127.0.0.1%3A9/a.png"),
        ):
            gallery.add_vectors(ids=[item], vectors=row, sources=[source])
    store.put("photos2/a.png", png(2))
    for allowed, answers in (
        ((), {"mine": 404}),
        (("s3://shop/photos/",), {"mine": 200, "other": 404, "odd": 404, "away": 404, "nobody": 404}),
    ):
        changes = {"gallery": str(gallery_path), "remote_images": allowed}
        store.requests.clear()
        with running(bundle, **changes) as there:
            for item, status in answers.items():
                assert there.client("GET", f"/v1/items/{item}/image").status == status, (allowed, item)
        assert {key for _, key in store.requests} <= ({"photos/a.png"} if allowed else set())
    with pytest.raises(UsageError, match="no address of a store"):
        remote.only(["/photos"])


def test_a_reading_process_of_its_own(store: Store, bundle: Path, tmp_path: Path) -> None:
    """Workers that decode have the settings of this process."""
    (entry, *_) = open_source("s3://shop/photos").items()
    assert isinstance(entry, Item)
    code = index_main([str(bundle), "s3://shop/photos", "--gallery", str(tmp_path / "g"), "--workers", "1"])
    with Gallery.open(tmp_path / "g", read_only=True) as gallery:
        assert code == 0 and len(gallery) == 4


@pytest.mark.parametrize("excuse", ["no " * 50_000, "\x9b31m no\u202e"])
def test_what_a_store_says_is_short_and_printable(store: Store, excuse: str) -> None:
    store.forbidden, store.excuse = {"photos"}, excuse
    for call in (lambda: listed("s3://shop/photos"), lambda: Location("s3://shop/photos/a.png").read()):
        with pytest.raises((OSError, ImageError)) as raised:
            call()
        assert len(str(raised.value)) < 500 and str(raised.value).isprintable()
    store.excuse = "AccessDenied"
