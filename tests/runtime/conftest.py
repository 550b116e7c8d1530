"""A small gallery of random pictures, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_infer import Engine, Gallery, Searcher
from tests.bundles import write_tiny_bundle

COUNT = 40


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNG files of different sizes, so that preprocessing has something to do."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(7)
    paths = []
    for number in range(COUNT):
        height, width = random.integers(8, 40, 2)
        # Low frequencies, so that pictures differ after they were scaled to 8 x 8.
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        path = folder / f"picture{number:02}.png"
        small.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "artemis.cir")


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Engine:
    return Engine(bundle, device="cpu", threads=1)


@pytest.fixture(scope="session")
def gallery_path(bundle: Path, engine: Engine, pictures: list[Path]) -> Path:
    """The bundle's own gallery: next to it, by its name."""
    path = bundle.with_suffix(".gallery")
    metadata = [{"colour": "red" if i % 2 else "blue", "price": i} for i in range(COUNT)]
    with Gallery.create(path, engine, dtype="float32") as gallery:
        gallery.add(pictures, ids=[f"sku-{i}" for i in range(COUNT)], metadata=metadata)
    return path


@pytest.fixture
def searcher(engine: Engine, gallery_path: Path) -> Iterator[Searcher]:
    searcher = Searcher(engine, gallery_path)
    yield searcher
    searcher.gallery.close()
