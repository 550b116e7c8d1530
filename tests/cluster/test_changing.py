"""Other shards and other bundles while queries go on: every answer is whole, and of one version."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.bundle.manifest import CenterCrop, PixelInput, Resize, ToRgb
from cir_infer.cluster import changing
from cir_infer.cluster.changing import HeldSource
from cir_infer.cluster.encoding import EngineOptions
from cir_infer.cluster.indexing import Plan
from cir_infer.cluster.parts import Part
from cir_infer.commands.cluster import main
from cir_infer.commands.index import main as index_main
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.encoding import LocalEncoder
from cir_infer.indexing.items import Broken
from cir_infer.indexing.report import Report
from cir_infer.indexing.run import index_encoded
from cir_infer.indexing.sources import open_source
from cir_infer.shards import ShardedGallery, succession
from tests.bundles import SIDE, write_tiny_bundle
from tests.gallery.support import filled, vectors
from tests.indexing.support import folder_of

QUERY = "is red"


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that makes other rows of the same images."""
    steps = (ToRgb(), Resize(SIDE, "bicubic"), CenterCrop(SIDE))
    image = PixelInput(SIDE, SIDE, steps)
    return write_tiny_bundle(tmp_path_factory.mktemp("better") / "better.cir", image=image)


def right(folder: Path, bundle: Path, photos: Path) -> list[tuple[str, float]]:
    """What one gallery answers, by id: equal scores are in another order among shards."""
    index_main([str(bundle), str(photos), "--gallery", str(folder), "--workers", "0"])
    with Engine(bundle) as engine, Gallery.open(folder, engine) as gallery, Searcher(engine, gallery) as one:
        return told(one.query(photos / "part0" / "0.png", QUERY, k=60))


def told(hits: Any) -> list[tuple[str, float]]:
    return sorted((hit.id, hit.score) for hit in hits)


def test_what_a_gallery_holds_as_a_source(tmp_path: Path, bundle: Path, photos: Path) -> None:
    with Engine(bundle) as engine, Gallery.create(tmp_path / "g", engine) as gallery:
        gallery.add([photos / "part0" / "0.png"], ids=["a"], metadata=[{"price": 3}])
        gallery.add_vectors(ids=["b"], vectors=vectors(1, dimension=engine.dimension))
        first, second = list(HeldSource(gallery).items())
        assert not isinstance(first, Broken) and (first.id, first.metadata) == ("a", {"price": 3})
        assert isinstance(second, Broken) and "without an image" in second.reason
        key = gallery.next_key
        gallery.add([photos / "part1" / "1.png"], ids=["a"], existing="replace")
        again = list(HeldSource(gallery, key).items())
        assert [item.id for item in again] == ["a"]
        assert not isinstance(again[0], Broken) and again[0].stamp != first.stamp


@pytest.fixture
def shop(
    ray: Any, tmp_path: Path, bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Path]:
    folder = tmp_path / "s"
    assert main(["index", str(bundle), str(photos), "--gallery", str(folder), "--shards", "2", *LOCAL]) == 1
    assert main(["create", "shop", str(folder), *LOCAL]) == 0
    capsys.readouterr()
    yield folder
    main(["stop", "shop", *LOCAL])


LOCAL = ["--address", "local"]


@pytest.mark.ray
def test_every_answer_is_of_one_version(
    shop: Path,
    tmp_path: Path,
    bundle: Path,
    better: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cir_infer.shards.ray import follow

    answers = [right(tmp_path / "one", bundle, photos), right(tmp_path / "two", better, photos)]
    assert answers[0] != answers[1]
    capsys.readouterr()
    seen, errors, stop = set(), [], threading.Event()

    def ask() -> None:
        with follow("shop", address="local", every=0.05, deadline=600) as searcher:
            while not stop.is_set():
                try:
                    found = told(searcher.query(photos / "part0" / "0.png", QUERY, k=60))
                    seen.add(answers.index(found))
                except Exception as error:
                    errors.append(error)
                    return
            searcher.current(now=True)
            seen.add(answers.index(told(searcher.query(photos / "part0" / "0.png", QUERY, k=60))))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        switch = ["--name", "shop", "--grace", "2", "--json", *LOCAL]
        assert main(["change", str(shop), str(better), *switch]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["encoded"], said["version"], len(said["removed_shards"])) == (58, 2, 2)
        assert main(["rebalance", str(shop), "--into", "3", *switch]) == 0
        assert json.loads(capsys.readouterr().out)["version"] == 3
        assert main(["restart", "shop", *LOCAL]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and 1 in seen and seen <= {0, 1}
    with ShardedGallery(shop, read_only=True) as gallery:
        assert len(gallery.shards) == 3 and gallery.listing.bundle == str(better)
        assert sorted(place.name for place in shop.iterdir() if place.is_dir()) == sorted(
            gallery.listing.shards
        )
    assert main(["change", str(shop), str(better), *LOCAL]) == 1
    assert "has encoded its rows already" in capsys.readouterr().err


@pytest.mark.ray
def test_images_that_are_gone(
    ray: Any, tmp_path: Path, bundle: Path, better: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is changed over; what was encoded is kept for the next run."""
    import numpy as np
    from PIL import Image

    folder, mine = tmp_path / "s", tmp_path / "photos"
    mine.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(mine / f"{number}.png")
    assert main(["index", str(bundle), str(mine), "--gallery", str(folder), "--shards", "2", *LOCAL]) == 0
    (mine / "3.png").unlink()
    command = ["change", str(folder), str(better), "--grace", "0", "--json", *LOCAL]
    assert main(command) == 1
    assert "1 of its images cannot be encoded anew" in capsys.readouterr().err
    with ShardedGallery(folder, read_only=True) as gallery:
        assert gallery.listing.bundle == str(bundle) and len(gallery) == 6
    capsys.readouterr()
    assert main([*command, "--drop-broken", "--prune-limit", "0"]) == 1
    assert "1 of 6 items cannot be encoded anew, more than the limit" in capsys.readouterr().err
    assert main([*command, "--prune-limit", "1"]) == 2
    assert main([*command, "--drop-broken"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["encoded"], said["removed"]) == (0, 1)
    with ShardedGallery(folder, read_only=True) as gallery:
        assert len(gallery) == 5 and gallery.listing.bundle == str(better)


class Here:
    """Encoders of this process; between their passes others write to the old shards."""

    between: Callable[[], None]

    def __init__(self, options: EngineOptions, *_: object) -> None:
        self._engine = Engine(options.bundle)
        self.manifest = self._engine.manifest

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def run(self, places: list[str], plans: list[Plan], _: object) -> list[Report]:
        reports = []
        with Decoders(self.manifest, 0) as decoders:
            for place, plan in zip(places, plans, strict=True):
                with Gallery.open(place) as gallery:
                    encoder = LocalEncoder(self._engine, decoders)
                    reports.append(index_encoded(gallery, encoder, plan.parts(), batch_size=4))
        Here.between()
        return reports


def test_what_is_told_of_items_meanwhile_goes_over(
    tmp_path: Path, bundle: Path, better: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stamps say that their images are encoded already."""
    folder, photos, passes = tmp_path / "s", folder_of(tmp_path / "photos", 20), 0
    with Engine(bundle) as engine:
        made = ShardedGallery.create(
            folder, 2, dimension=engine.dimension, fingerprint=engine.fingerprint, bundle=str(bundle)
        )
        sources = [open_source(str(photos))]
        with made, Decoders(engine.manifest, 0) as decoders:
            for number, shard in enumerate(made.shards):
                parts = [Part(source, number, 2) for source in sources]
                index_encoded(shard, LocalEncoder(engine, decoders), parts, batch_size=4)
            ids = sorted(item for shard in made.shards for item in shard.ids)

    def tell() -> None:
        nonlocal passes
        passes += 1
        if passes > 2:
            return
        with ShardedGallery(folder) as gallery:
            for item in ids[passes::3]:
                gallery.of(item).set_metadata([item], [{"told": passes}])

    Here.between = tell
    monkeypatch.setattr(changing, "Encoders", Here)
    monkeypatch.setattr(succession, "_FEW", 0)
    report, old = changing.change_bundle(folder, EngineOptions(str(better), "cpu", None, None))
    assert passes > 2 and len(old) == 2 and not report.broken
    with ShardedGallery(folder, read_only=True) as gallery:
        assert gallery.listing.bundle == str(better)
        found = {}
        for shard in gallery.shards:
            snapshot = shard.snapshot()
            found |= {item.id: item.metadata for item in snapshot.items(snapshot.live_rows())}
            assert shard.verify().ok
    assert found == {item: {"told": at % 3} if at % 3 else {} for at, item in enumerate(ids)}


def test_an_unstamped_item_that_was_replaced(tmp_path: Path) -> None:
    """Its key tells, where nobody said what it was made of."""
    with filled(tmp_path / "g", 0) as gallery:
        stamps = set()
        for seed in (1, 2):
            gallery.add_vectors(ids=["a"], vectors=vectors(1, seed), sources=["/x/a.png"], existing="replace")
            (item,) = HeldSource(gallery).items()
            stamps.add(item.stamp)
        assert len(stamps) == 2
