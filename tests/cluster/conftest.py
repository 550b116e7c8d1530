"""One Ray for all tests of a cluster; skipped where it is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundles import write_tiny_bundle
from tests.indexing.object_store import Store, served
from tests.shards.support import started_ray


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """A store of objects, where the environment of every process of the cluster says."""
    with pytest.MonkeyPatch.context() as patch, served(patch, "shop") as found:
        yield found


@pytest.fixture(scope="session")
def ray(store: Store) -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'cir-infer[ray]', or make ray-check")
    module = started_ray()
    yield module
    module.shutdown()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "b.cir")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 images, two of them broken, and something else."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(58):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        place = folder / f"part{number % 3}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place)
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"none")
    (folder / "read.me").write_text("not an image")
    return folder


def processes_below(root: int | None = None) -> dict[int, str]:
    """The processes that descend from one, by default this, with what they are called."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status = (entry / "stat").read_text()
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            parents[int(entry.name)] = (int(status.rpartition(")")[2].split()[1]), title.strip())
    found: dict[int, str] = {}
    more = {os.getpid() if root is None else root}
    while more:
        more = {pid for pid, (parent, _) in parents.items() if parent in more and pid not in found}
        found.update({pid: parents[pid][1] for pid in more})
    return found
