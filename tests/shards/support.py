"""Shards that do what a test wants of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir_infer import Engine, Gallery
from cir_infer.errors import ShardError
from cir_infer.shards import About, Found, Held, LocalShard, ShardedGallery
from tests.bundles import write_tiny_bundle
from tests.gallery.support import names


def started_ray() -> Any:
    """A Ray of this process's own. Ray gives itself 30 s to start, which a busy machine may not keep."""
    from cir_infer.shards.ray import connect

    for _ in range(9):
        with suppress(ShardError):
            return connect()
    return connect()


def write_shards(folder: Path) -> Path:
    """A bundle b.cir, its gallery, the same in the two shards of s, and the pictures; the folder."""
    bundle = write_tiny_bundle(folder / "b.cir")
    files = [folder / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    with Engine(bundle) as engine, Gallery.create(folder / "b.gallery", engine) as gallery:
        gallery.add(files, ids=names(4))
        ShardedGallery.split(gallery, folder / "s", 2).close()
    return folder


class Odd:
    """A shard before which something happens; `before` gets the number of the call, from 0."""

    def __init__(self, shard: LocalShard, before: Callable[[int], None]) -> None:
        self._shard, self._before = shard, before
        self._lock = threading.Lock()
        self.calls = 0
        self.asked_for: list[list[str]] = []
        self.place = f"{shard.place} (odd)"

    def about(self, timeout: float | None = None) -> About:
        return self._shard.about(timeout)

    def search(self, *asked: Any) -> Found:
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
        self._before(number)
        return self._shard.search(*asked)

    def held(self, items: Sequence[str], timeout: float | None = None) -> list[Held | None]:
        self.asked_for.append(list(items))
        return self._shard.held(items, timeout)

    def close(self) -> None:
        self._shard.close()
