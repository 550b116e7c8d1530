"""Items over HTTP: one, a list, pictures."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from cir_infer import Engine, Gallery
from tests.bundles import write_tiny_bundle
from tests.serving.support import COUNT, ODD_IDS, Client, address, png, running


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
    "query",
    [
        *("limit=0", "limit=x", "after=-1", "order=up", "other=1", "limit=1&limit=2", "after=5", "after=x-y"),
        *("after=5-00000000", "after=" + "9" * 30, "after=%D9%A5-00000000"),
    ],
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
