"""Changing a gallery over to another bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cir_infer.commands.index import main
from cir_infer.engine import Engine
from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.indexing.reencode import reencode
from tests.bundles import write_tiny_bundle
from tests.indexing.support import assert_rows_are_those_of, images_of, indexed, png


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.cir")


@pytest.fixture
def engine(bundle: Path) -> Engine:
    return Engine(bundle)


@pytest.fixture
def better(tmp_path: Path) -> Engine:
    """A bundle whose image graph is another one."""
    from tests import bundles

    path = tmp_path / "better.cir"
    members = bundles.members_of("artemis") | {"image.onnx": bundles.image_graph(seed=5)}
    bundles.write_bundle(path, bundles.manifest_of("artemis"), members)
    return Engine(path)


def test_reencoding_changes_all_rows_at_once(
    tmp_path: Path, engine: Engine, better: Engine, monkeypatch
) -> None:
    monkeypatch.setattr("cir_infer.indexing.reencode.COMMIT_ROWS", 5)
    gallery = indexed(tmp_path, engine)
    gallery.remove(["sub/1.png"])
    reader = Gallery.open(tmp_path / "g", engine, read_only=True)
    before = reader.snapshot()
    rows = before.rows.take(before.live_rows())
    ids = gallery.ids
    seen = []

    def meanwhile() -> None:
        # Until the switch, everybody sees the old rows.
        seen.append(reader.snapshot().fingerprint)

    report = reencode(gallery, better, workers=0, batch_size=4, on_item=meanwhile)
    assert report.replaced == 14 and report.broken == [] and set(seen) == {engine.fingerprint}
    assert gallery.fingerprint == better.fingerprint and gallery.ids == ids
    shards = {f"s/{number:04d}.png": png(number) for number in range(3)}
    images = {k: v for k, v in images_of(12).items() if k != "sub/1.png"} | shards
    assert_rows_are_those_of(gallery, better, images)
    assert gallery.snapshot().matching("number >= 0") == 3
    with pytest.raises(GalleryError) as caught:
        reader.snapshot()
    assert engine.fingerprint in str(caught.value) and better.fingerprint in str(caught.value)
    assert (before.rows.take(before.live_rows()) == rows).all()
    del before
    reader.close()
    gallery.add_vectors(ids=["z"], vectors=better.encode_images([png(99)]))
    assert gallery.verify().ok
    assert len(list((tmp_path / "g" / "rows").iterdir())) == gallery.snapshot().segment_count


def test_items_come_and_go_while_reencoding(
    tmp_path: Path, engine: Engine, better: Engine, monkeypatch
) -> None:
    monkeypatch.setattr("cir_infer.indexing.reencode.COMMIT_ROWS", 4)
    gallery = indexed(tmp_path, engine)
    shop = Gallery.open(tmp_path / "g", engine)
    (tmp_path / "late.png").write_bytes(png(60))
    steps = iter(range(1000))

    def meanwhile() -> None:
        step = next(steps)
        if step == 5:
            shop.remove(["0.png", "sub/11.png"])
            shop.add([tmp_path / "late.png"], ids=["late"])
            shop.compact()
        if step == 10:
            shop.add([tmp_path / "late.png"], ids=["2.png"], existing="replace")

    reencode(gallery, better, workers=0, batch_size=2, on_item=meanwhile)
    images = images_of(12) | {f"s/{number:04d}.png": png(number) for number in range(3)}
    images |= {"late": png(60), "2.png": png(60)}
    expected = {k: v for k, v in images.items() if k not in ("0.png", "sub/11.png")}
    assert_rows_are_those_of(gallery, better, expected)
    assert gallery.verify().ok
    with pytest.raises(GalleryError, match="encoded by bundle"):
        shop.add([png(1)], ids=["stale"])
    assert "stale" not in gallery
    gallery.compact()
    assert_rows_are_those_of(gallery, better, expected)
    assert gallery.verify().ok


def test_reencoding_is_continued_where_it_stopped(
    tmp_path: Path, engine: Engine, better: Engine, monkeypatch
) -> None:
    monkeypatch.setattr("cir_infer.indexing.reencode.COMMIT_ROWS", 4)
    indexed(tmp_path, engine).close()
    steps = iter(range(1000))

    def stop() -> None:
        if next(steps) == 8:
            raise KeyboardInterrupt

    with Gallery.open(tmp_path / "g") as gallery, pytest.raises(KeyboardInterrupt):
        reencode(gallery, better, workers=0, batch_size=2, on_item=stop)
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.fingerprint == engine.fingerprint and gallery.verify().ok
        report = reencode(gallery, better, workers=0)
        assert 0 < report.replaced < 15 and gallery.fingerprint == better.fingerprint
        assert gallery.verify().ok and len(gallery) == 15


def test_a_drive_that_is_away_takes_no_items_along(
    tmp_path: Path, engine: Engine, better: Engine, capsys
) -> None:
    """--drop-broken over an empty mount point emptied the gallery, and the exit code was 0."""
    indexed(tmp_path, engine).close()
    shutil.move(tmp_path / "f", tmp_path / "away")
    (tmp_path / "f").mkdir()
    arguments = [better.path, "--gallery", str(tmp_path / "g"), "--reencode", "--workers", "0"]
    assert main([*arguments, "--prune-limit", "3"]) == 2
    assert "--drop-broken" in capsys.readouterr().err
    for limit in ([], ["--prune-limit", "11"], ["--prune-limit", "50%"]):
        assert main([*arguments, "--drop-broken", *limit]) == 1
        assert "12 of 15 items cannot be encoded anew" in capsys.readouterr().err
        with Gallery.open(tmp_path / "g", engine) as gallery:
            assert len(gallery) == 15
    assert main([*arguments, "--drop-broken", "--prune-limit", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 12
    with Gallery.open(tmp_path / "g", better) as gallery:
        assert len(gallery) == 3 and gallery.verify().ok


def test_reencoding_refuses_to_lose_items(tmp_path: Path, engine: Engine, better: Engine, capsys) -> None:
    gallery = indexed(tmp_path, engine)
    gallery.add_vectors(ids=["bare"], vectors=engine.encode_images([png(70)]))
    gallery.close()
    (tmp_path / "f" / "4.png").unlink()
    arguments = [better.path, "--gallery", str(tmp_path / "g"), "--reencode", "--workers", "0"]
    assert main(arguments) == 1
    assert "2 of its images" in capsys.readouterr().err
    with Gallery.open(tmp_path / "g", engine) as gallery:
        assert len(gallery) == 16
    assert main([*arguments, "--drop-broken"]) == 0
    with Gallery.open(tmp_path / "g", better) as gallery:
        assert len(gallery) == 14 and "4.png" not in gallery and "bare" not in gallery and gallery.verify().ok
        gallery.add_vectors(ids=["bare"], vectors=better.encode_images([png(70)]))
    assert main(arguments) == 1
    assert "has encoded its rows already" in capsys.readouterr().err
