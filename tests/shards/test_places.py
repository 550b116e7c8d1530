"""Places of bundles, galleries, shards and images, in whatever form a program has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher, VectorSearcher
from cir_infer.bundle import Bundle
from cir_infer.errors import UsageError
from cir_infer.shards import LocalShard, ShardedGallery, ShardedSearcher, follow_folder, rebalance, remove_old
from tests.bundles import write_tiny_bundle
from tests.gallery.support import DIM, filled
from tests.indexing.support import png


class Said:
    """A path-like object that says whatever a test wants."""

    def __init__(self, said: Any) -> None:
        self._said = said

    def __fspath__(self) -> Any:
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


def close(opened: Any) -> None:
    opened.close()


@pytest.fixture
def doors(tmp_path: Path) -> dict[str, tuple[Path, Callable[[Any], None]]]:
    """What takes a path, with one that it takes."""
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    gallery, vectors = tmp_path / "g", np.ones((1, DIM))
    with filled(gallery) as opened:
        ShardedGallery.split(opened, tmp_path / "s", 2).close()
    engine = Engine(bundle)
    pictures = tmp_path / "p"
    Gallery.create(pictures, engine).close()
    (tmp_path / "a.png").write_bytes(png(1))

    def add(image: Any) -> None:
        with Gallery.open(pictures, engine) as there:
            there.add([image], ids=["a"], existing="replace")
            assert there.snapshot().sources([0]) == [str(tmp_path / "a.png")]
            there.remove(["a"])
            there.compact()

    def encode(image: Any) -> None:
        engine.encode_images([image])

    def source(place: Any) -> None:
        with Gallery.open(gallery) as there:
            there.add_vectors(ids=["a"], vectors=vectors, sources=[place], existing="replace")

    folder = tmp_path / "s"
    return {
        "Bundle": (bundle, lambda path: close(Engine(Bundle(path)))),
        "Engine": (bundle, lambda path: close(Engine(path))),
        "Searcher": (pictures, lambda path: close(Searcher(engine, path))),
        "VectorSearcher": (gallery, lambda path: close(VectorSearcher(path))),
        "open": (gallery, lambda path: close(Gallery.open(path))),
        "create": (tmp_path / "new", lambda path: close(Gallery.create(path, dimension=4))),
        "ShardedGallery": (folder, lambda path: close(ShardedGallery(path))),
        "ShardedSearcher": (folder, lambda path: close(ShardedSearcher(None, path))),
        "a list of shards": (gallery, lambda path: close(ShardedSearcher(None, [[path]]))),
        "follow_folder": (folder, lambda path: close(follow_folder(path))),
        "LocalShard": (gallery, lambda path: close(LocalShard(path))),
        "rebalance": (folder, lambda path: remove_old(folder, rebalance(path, 2))),
        "encode_images": (tmp_path / "a.png", encode),
        "add": (tmp_path / "a.png", add),
        "sources": (tmp_path / "a.png", source),
    }


def test_a_path_is_taken_as_text_or_bytes_and_nothing_else_comes_from_the_depths(
    doors: dict[str, tuple[Path, Callable[[Any], None]]],
) -> None:
    for name, (place, call) in doors.items():
        for wrong in (RuntimeError("no"), 5, None):
            with pytest.raises(UsageError) as raised:
                call(Said(wrong))
            assert len(str(raised.value)) < 400, name
        for good in (Said(str(place)), place, Said(os.fsencode(place))):
            if name != "create" or not place.exists():
                call(good)
