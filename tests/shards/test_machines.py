"""Shards on other machines: what their items say of files is not of this one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from cir_infer import Engine, Gallery
from cir_infer.errors import ImageError
from cir_infer.shards import HttpShard, ShardedGallery, ShardedSearcher
from tests.serving.support import make_gallery, png, running
from tests.shards.test_http import url


def test_a_path_of_another_machine_is_not_the_file_of_this_one(tmp_path: Path) -> None:
    """Both have a picture at one place, two different ones: that of the shard was left out for ours."""
    bundle = make_gallery(tmp_path)
    place, named = tmp_path / "picture03.png", "sku-3"
    with Engine(bundle, "cpu", 1) as engine, running(bundle, shard=True) as service:
        there = place.read_bytes()
        with (
            ShardedSearcher(engine, [HttpShard(url(service))]) as far,
            ShardedSearcher(engine, [tmp_path / "artemis.gallery"]) as near,
        ):
            found = far.query(place, "is red", k=40)  # one picture at one place: its row says so
            assert found.reference_id == near.query(place, "is red", k=40).reference_id == named
            assert far.query(there, "is red", k=40).reference_id == named
            place.write_bytes(png(777))  # ours, as a program on another machine has it
            hits = far.query(place, "is red", k=40)
            assert hits.reference_id is None and named in hits.ids
            assert named in far.query(place, "is red", k=40, exclude_reference=True).ids
            for asked in (there, io.BytesIO(there), Image.open(io.BytesIO(there))):
                left = far.query(asked, "is red", k=40, exclude_reference=True)
                assert left.reference_id == named and named not in left.ids and len(left) == 39
            assert near.query(place, "is red", k=40).reference_id == named  # here a file is a file
            # A refined hit is known by its id, and its picture by its row.
            refined = far.query(hits[hits.ids.index(named)], "is red", k=40)
            assert named not in refined.ids
            with pytest.raises(ImageError, match="is not the image that was indexed as 'sku-3'"):
                refined.explain(0)


def test_shards_here_and_elsewhere_are_told_apart_hit_by_hit(tmp_path: Path) -> None:
    bundle = make_gallery(tmp_path)
    with Engine(bundle, "cpu", 1) as engine:
        with Gallery.open(tmp_path / "artemis.gallery", engine) as gallery:
            ShardedGallery.split(gallery, tmp_path / "s", 2).close()
        folders = [tmp_path / "s" / f"{number:04}.gallery" for number in range(2)]
        held = []
        for folder in folders:
            with Gallery.open(folder, read_only=True) as shard:
                held.append(shard.held(shard.ids))
        files = {item: Path(known.source or "") for part in held for item, known in part.items()}
        for file in files.values():
            file.write_bytes(png(778))
        with running(bundle, gallery=str(folders[1]), shard=True) as service:
            shards = [folders[0], HttpShard(url(service))]
            with ShardedSearcher(engine, shards) as searcher:
                for item, file in files.items():
                    hits = searcher.query(file, "is red", k=40)
                    assert hits.reference_id == (item if item in held[0] else None), item
