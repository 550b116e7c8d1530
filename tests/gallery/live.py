"""A gallery that others take the place of under one name, and the states that each may be in."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.gallery import Gallery
from tests.gallery.load import DIM, State, metadata, vector

ITEMS = [f"i{number}" for number in range(150)]


class Model:
    """What one gallery may hold: a history of states, of which the newest may be only begun."""

    def __init__(self, folder: Path, tag: int) -> None:
        self.folder = folder
        self.turn = threading.Lock()  # one change at a time, so that the history is a line
        self.states: list[State] = [{}]
        self.begun = self.acknowledged = 0
        self.version = tag * 1_000_000  # no two galleries hold the same version of an item

    def items(self, names: list[str]) -> dict[str, Any]:
        """The arguments of `add_vectors` for a new version of some items."""
        return {
            "ids": names,
            "vectors": np.stack([vector(name, self.version) for name in names]),
            "metadata": [metadata(name, self.version) for name in names],
            "existing": "replace",
        }

    def begin(self, state: State) -> None:
        self.states.append(state)
        self.begun += 1

    def acknowledge(self) -> None:
        self.acknowledged = self.begun
        for number in range(max(0, self.acknowledged - 300), max(0, self.acknowledged - 200)):
            self.states[number] = {}  # nobody can still ask for these

    def take_back(self) -> None:
        self.states.pop()
        self.begun -= 1


class Service:
    """The gallery that is live, under one name that leads to one folder after the other."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.shop = home / "shop"
        self.models: dict[str | None, Model] = {}
        self._count = 0
        self._number = 0
        self.live = self._made()
        self.live.folder.rename(self.shop)
        self.live.folder = self.shop

    def _made(self) -> Model:
        """A gallery that waits to go live."""
        self._number += 1
        model = Model(self.home / f"v{self._number}", self._number)
        with Gallery.create(model.folder, dimension=DIM, dtype="float16") as gallery:
            model.version += 1
            model.begin(dict.fromkeys(ITEMS[:60], model.version))
            gallery.add_vectors(**model.items(ITEMS[:60]))
            model.acknowledge()
            self.models[gallery._store.identity] = model
        return model

    def exchange(self, rng: random.Random) -> None:
        """Put another gallery in the place of the live one, and remove the one before."""
        following = self._made()
        old, gone = self.live, self.home / f"gone{self._number}"
        if rng.random() < 0.5 and not self.shop.is_symlink():
            self.shop.rename(gone)
            following.folder.rename(self.shop)
        else:
            link = self.home / "link"
            link.symlink_to(following.folder)
            if not self.shop.is_symlink():
                self.shop.rename(gone)
            else:
                gone = self.shop.resolve()
            link.replace(self.shop)
        self.live = following
        time.sleep(rng.random())
        with old.turn:
            shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def opened(self, **options: Any) -> Iterator[tuple[Gallery, Model]]:
        with Gallery.open(self.shop, **options) as gallery:
            yield gallery, self.models[gallery._store.identity]
