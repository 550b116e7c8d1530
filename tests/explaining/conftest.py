"""Pictures, and galleries of them by bundles with and without the graph that explains rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_infer import Engine, Gallery, Searcher
from tests.bundles import write_explained_bundle, write_tiny_bundle

COUNT = 14


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(11)
    paths = []
    for number in range(COUNT):
        height, width = (int(side) for side in random.integers(9, 40, 2))
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        path = folder / f"picture{number:02}.png"
        small.resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


Open = Callable[..., Searcher]


@pytest.fixture
def opened(tmp_path: Path, pictures: list[Path]) -> Iterator[Open]:
    """opened(system, explained, dtype): a searcher over the pictures as "sku-0", "sku-1" ..."""
    owned: list[Searcher] = []

    def make(system: str = "artemis", explained: bool = True, dtype: str = "float32") -> Searcher:
        write = write_explained_bundle if explained else write_tiny_bundle
        engine = Engine(write(tmp_path / f"{len(owned)}.cir", system), device="cpu", threads=1)
        gallery = Gallery.create(tmp_path / f"{len(owned)}.gallery", engine, dtype=dtype)
        gallery.add(pictures, ids=[f"sku-{i}" for i in range(COUNT)])
        owned.append(Searcher(engine, gallery))
        return owned[-1]

    yield make
    for searcher in owned:
        searcher.gallery.close()
        searcher.engine.close()
