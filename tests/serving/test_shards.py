"""`cir-serve` over a sharded gallery answers what it answers over one gallery."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine
from cir_infer.cluster.serving import _follow
from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.serving.opened import open_searcher
from cir_infer.serving.service import Service
from cir_infer.serving.settings import Settings
from cir_infer.shards import ShardedGallery, rebalance
from tests.serving.support import ODD_IDS, Running, png, running


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "s"
    with Gallery.open(bundle.with_suffix(".gallery"), read_only=True) as one:
        ShardedGallery.split(one, path, 3).close()
    return path


@pytest.fixture(scope="module")
def over_shards(bundle: Path, folder: Path) -> Iterator[Running]:
    with running(bundle, gallery=str(folder)) as found:
        yield found


def without_times(answer: Any) -> Any:
    assert answer.status == 200, answer
    return {name: value for name, value in answer.json.items() if name not in ("timing", "explanations")}


def test_queries_are_answered_alike(served: Running, over_shards: Running) -> None:
    image = base64.b64encode(png(3)).decode()
    for query in (
        {"image": image, "text": "is red", "k": 40},
        {"item": "sku-4", "text": "is red", "where": "price < 30", "exclude": ["sku-7"]},
        {"item": ODD_IDS[1], "text": "is red", "k": 5, "balance": {"explicit_matching": 2.0}},
    ):
        mine, theirs = (without_times(one.client.search(**query)) for one in (over_shards, served))
        assert mine == theirs
    why = {"item": "sku-4", "text": "is red", "hit": "sku-9"}
    told = [one.client("POST", "/v1/explain", why).json for one in (over_shards, served)]
    assert {**told[0], "timing": 0} == {**told[1], "timing": 0}
    row = {"vectors": [[1.0] * served.service.describe()["dimension"]], "k": 9}
    asked = [one.client("POST", "/v1/search/vectors", row).json["answers"] for one in (over_shards, served)]
    assert asked[0] == asked[1]


def test_items_are_told_alike(served: Running, over_shards: Running) -> None:
    fields = [one.client("GET", "/v1/fields").json["fields"] for one in (over_shards, served)]
    # Of values that are equally common the first met are examples, and shards have another order.
    assert [{**one, "examples": 0} for one in fields[0]] == [{**one, "examples": 0} for one in fields[1]]
    for path in ("/v1/items/sku-3", "/v1/items/a%2Fb.png"):
        mine, theirs = (one.client("GET", path) for one in (over_shards, served))
        assert (mine.status, mine.json) == (theirs.status, theirs.json) and mine.status == 200
    assert over_shards.client("GET", "/v1/items/nobody").kind == "not-found"
    assert over_shards.client("GET", "/v1/items/sku-3/image").status == 200
    listed: dict[str, list[str]] = {}
    for name, one in (("mine", over_shards), ("theirs", served)):
        after, listed[name] = "", []
        while after is not None:
            page = one.client("GET", f"/v1/items?limit=7&after={after}&where=price%20%3E%203").json
            listed[name] += [item["id"] for item in page["items"]]
            after = page["after"]
    assert sorted(listed["mine"]) == sorted(listed["theirs"]) and len(set(listed["mine"])) == 36
    chosen = over_shards.client("GET", "/v1/items?order=random&limit=40").json
    assert len({item["id"] for item in chosen["items"]}) == chosen["matching"] == 40
    about = [one.service.describe()["gallery"] for one in (over_shards, served)]
    assert about[0]["items"] == about[1]["items"] and about[0]["row_type"] == about[1]["row_type"]
    assert over_shards.client("GET", "/metrics").status == 200


def test_other_shards_are_taken_up(bundle: Path, folder: Path, tmp_path: Path) -> None:
    with ShardedGallery(folder, read_only=True) as gallery:
        ShardedGallery.split(gallery, tmp_path / "s", 2).close()
    with running(bundle, gallery=str(tmp_path / "s")) as found:
        before = without_times(found.client.search(item="sku-4", text="is red", k=40))
        page = found.client("GET", "/v1/items?limit=7").json
        rebalance(tmp_path / "s", 5)
        assert without_times(found.client.search(item="sku-4", text="is red", k=40)) == before
        assert found.service.reload()
        with found.service.current.use() as opened:
            assert len(opened.searcher.shards) == 5
        # The next page of the old shards is none of the new ones: items were left out, and others came twice.
        beyond = found.client("GET", f"/v1/items?limit=7&after={page['after']}")
        assert beyond.kind == "invalid-argument" and "begin again" in beyond.json["detail"]
        after = without_times(found.client.search(item="sku-4", text="is red", k=40))
        assert sorted(hit["score"] for hit in after["hits"]) == sorted(hit["score"] for hit in before["hits"])


def test_a_shard_that_does_not_answer_may_answer_later(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """It was told as a fault of the service, 500, with which nobody asks again."""
    with ShardedGallery(folder, read_only=True) as gallery:
        ShardedGallery.split(gallery, tmp_path / "s", 2).close()
    shard = tmp_path / "s" / "0001.gallery"
    with running(bundle, gallery=str(tmp_path / "s")) as found:
        image = base64.b64encode(png(3)).decode()
        shard.rename(tmp_path / "away")
        answer = found.client.search(image=image, text="is red")
        assert (answer.status, answer.kind, answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert str(tmp_path) not in answer.body.decode()
        (tmp_path / "away").rename(shard)
        assert found.client.search(image=image, text="is red").status == 200


def test_shards_without_items_are_served(bundle: Path, tmp_path: Path) -> None:
    """Nothing in them was taken for no gallery, and the service ended in an AttributeError."""
    with Engine(bundle, device="cpu", threads=1) as engine:
        shape = {"dimension": engine.dimension, "fingerprint": engine.fingerprint}
        made = ShardedGallery.create(tmp_path / "s", 2, dtype="float32", **shape)  # type: ignore[arg-type]
        made.close()
        with running(bundle, gallery=str(tmp_path / "s")) as found:
            image = base64.b64encode(png(3)).decode()
            assert found.client.search(image=image, text="is red").kind == "empty-gallery"
            assert found.client("GET", "/v1/items").json == {"items": [], "after": None, "matching": 0}
            assert found.client("GET", "/readyz").status == 200 and found.service.reload()
            with ShardedGallery(tmp_path / "s") as gallery:
                shard = gallery.of("new")
                shard.add_vectors(ids=["new"], vectors=np.ones((1, engine.dimension)))
            (hit,) = found.client.search(image=image, text="is red").json["hits"]
            assert hit["id"] == found.client("GET", "/v1/items/new").json["id"] == "new"


def test_a_service_goes_over_though_the_shards_were_changed_while_it_opened(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    """It took what the folder said then for what it had opened, and asked shards that ended soon."""
    with ShardedGallery(folder, read_only=True) as gallery:
        ShardedGallery.split(gallery, tmp_path / "s", 2).close()
    settings = Settings(str(bundle), gallery=str(tmp_path / "s"), device="cpu", threads=1)
    service = Service(settings)
    rebalance(tmp_path / "s", 3)
    following = threading.Thread(target=_follow, args=(service, settings))
    following.start()
    try:
        until = time.monotonic() + 60
        while service.metrics.reloads.labels("done")._value.get() == 0 and time.monotonic() < until:
            time.sleep(0.05)
        with service.current.use() as opened:
            assert len(opened.searcher.shards) == 3
    finally:
        service.close()
        following.join()


def test_what_shards_do_not_do(bundle: Path, folder: Path) -> None:
    for wrong in ({"writable": True}, {"shard": True}):
        with pytest.raises(UsageError, match="served as a whole"):
            open_searcher(Settings(str(bundle), gallery=str(folder), **wrong))
