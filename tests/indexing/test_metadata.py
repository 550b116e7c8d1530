"""Metadata beside images: what a source tells, what others told the gallery, and when each counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.indexing import judging
from cir_infer.indexing.items import Item
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_source
from tests.bundles import write_tiny_bundle
from tests.indexing.support import assert_rows_are_those_of, folder_of, images_of, png


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(write_tiny_bundle(tmp_path / "tiny.cir"))


def metadata_of(gallery: Gallery) -> dict[str, Any]:
    snapshot = gallery.snapshot()
    return {item.id: item.metadata for item in snapshot.items(snapshot.live_rows())}


def test_what_others_told_of_items_stays_until_their_source_tells_something_else(
    tmp_path: Path, engine: Engine
) -> None:
    """It was lost with the next run, and the image encoded for it, where no manifest told anything."""
    folder = folder_of(tmp_path / "f", 4)
    manifest = tmp_path / "m.jsonl"

    def tell(**fields: object) -> None:
        manifest.write_text(json.dumps({"id": "sku", "image": "f/0.png", **fields}) + "\n")

    tell(price=1)
    sources = [open_source(str(folder)), open_source(str(manifest))]
    gallery = Gallery.create(tmp_path / "g", engine)
    index(gallery, engine, sources, workers=0)
    gallery.set_metadata(["0.png", "sub/1.png", "2.png", "sku"], [{"told": n} for n in range(4)])
    told = metadata_of(gallery)
    report = index(gallery, engine, sources, workers=0)
    assert (report.unchanged, report.encoded) == (5, 0) and metadata_of(gallery) == told
    # Touched, replaced by another picture, moved: it is the same item.
    os.utime(folder / "0.png", ns=(1, 1))
    (folder / "sub" / "1.png").write_bytes(png(100))
    report = index(gallery, engine, sources, workers=0)
    assert (report.replaced, report.encoded) == (1, 1) and metadata_of(gallery) == told
    folder.rename(tmp_path / "moved")
    (tmp_path / "f").symlink_to(tmp_path / "moved")
    report = index(gallery, engine, [open_source(str(tmp_path / "moved"))], workers=0)
    assert report.encoded == 0 and metadata_of(gallery) == told
    (tmp_path / "moved" / "2.png").rename(tmp_path / "moved" / "another.png")
    report = index(gallery, engine, [open_source(str(tmp_path / "moved"))], workers=0, prune=True)
    told["another.png"] = told.pop("2.png")
    assert (report.moved, report.encoded) == (1, 0) and metadata_of(gallery) == told
    # What the manifest tells anew is what counts.
    tell(price=2)
    report = index(gallery, engine, sources, workers=0)
    assert (report.replaced, report.encoded) == (1, 0)
    assert metadata_of(gallery) == told | {"sku": {"price": 2}}
    tell()
    index(gallery, engine, sources, workers=0)
    assert metadata_of(gallery) == told | {"sku": {}}
    assert gallery.verify().ok


def test_what_a_program_told_of_its_images_stays(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 2)
    gallery = Gallery.create(tmp_path / "g", engine)
    gallery.add([folder / "0.png"], ids=["0.png"], metadata=[{"told": 1}])
    gallery.add_vectors(ids=["sub/1.png"], vectors=engine.encode_images([png(9)]), metadata=[{"told": 2}])
    report = index(gallery, engine, [open_source(str(folder))], workers=0)
    assert (report.replaced, report.encoded) == (2, 2)
    assert metadata_of(gallery) == {"0.png": {"told": 1}, "sub/1.png": {"told": 2}}
    assert_rows_are_those_of(gallery, engine, images_of(2))
    # Where another image takes the id, nothing of the one before is true of it.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0.png").write_bytes(png(50))
    index(gallery, engine, [open_source(str(tmp_path / "other"))], workers=0, replace_taken=True)
    assert metadata_of(gallery)["0.png"] == {}


def test_no_image_is_read_where_only_its_metadata_changed(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "f", 6)
    manifest = tmp_path / "m.jsonl"
    read: list[str] = []
    digests = judging.digests

    def watched(items: list[Item]) -> dict[str, str]:
        read.extend(item.id for item in items)
        return digests(items)

    monkeypatch.setattr(judging, "digests", watched)
    gallery = Gallery.create(tmp_path / "g", engine, dtype="int8")
    for price in (1, 2):
        rows = [json.dumps({"image": f"f/{name}", "price": price}) for name in images_of(6)]
        manifest.write_text("\n".join(rows))
        read.clear()
        report = index(gallery, engine, [open_source(str(manifest))], workers=0)
        assert gallery.snapshot().matching({"price": price}) == 6
    assert (report.replaced, report.encoded, read) == (6, 0, [])
    (tmp_path / "f" / "0.png").write_bytes(png(100))
    manifest.write_text(json.dumps({"image": "f/0.png", "price": 3}))
    report = index(gallery, engine, [open_source(str(manifest))], workers=0)
    assert (report.replaced, report.encoded) == (1, 1)
