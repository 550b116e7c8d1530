"""Reader threads that know, at any moment, what a gallery may show them."""

from __future__ import annotations

import random
import traceback
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from cir_infer.gallery import Gallery, Snapshot
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms

DIM = 16
State = dict[str, int]
"""What the gallery holds: the version of each id."""


def vector(item: str, version: int) -> np.ndarray:
    """A row that tells items and versions apart, and that float16 holds exactly."""
    rng = np.random.default_rng((int(item[1:]), version))
    return (rng.integers(-100, 100, DIM) + 0.5).astype(np.float32)


def metadata(item: str, version: int) -> dict[str, Any]:
    number = int(item[1:])
    return {"id": item, "version": version, "third": number % 3, "tags": [f"v{version % 2}", "all"]}


class Writer:
    """Changes a gallery and keeps the history of what it holds."""

    def __init__(self, path: Path) -> None:
        self.gallery = Gallery.create(path, dimension=DIM)
        self.states: list[State] = [{}]
        self.begun = self.acknowledged = 0
        self._version = 0
        self._rows: dict[tuple[str, int], int] = {}  # of versions that are told alone, the one of the row

    def store(self, items: list[str]) -> None:
        self._version += 1
        version = self._version
        self._begin(
            {**{k: v for k, v in self.states[-1].items() if k not in items}, **dict.fromkeys(items, version)}
        )
        self.gallery.add_vectors(
            ids=items,
            vectors=np.stack([vector(item, version) for item in items]),
            metadata=[metadata(item, version) for item in items],
            existing="replace",
        )
        self.acknowledged = self.begun

    def describe(self, items: list[str]) -> None:
        """Another version of what is said of some items, whose rows stay."""
        self._version += 1
        version, held = self._version, self.states[-1]
        for item in items:
            self._rows[item, version] = self._rows.get((item, held[item]), held[item])
        self._begin({**held, **dict.fromkeys(items, version)})
        self.gallery.set_metadata(items, [metadata(item, version) for item in items])
        self.acknowledged = self.begun

    def row(self, item: str, version: int) -> np.ndarray:
        """The row that an item has in one of its versions."""
        return vector(item, self._rows.get((item, version), version))

    def remove(self, items: list[str]) -> None:
        self._begin({k: v for k, v in self.states[-1].items() if k not in items})
        self.gallery.remove(items)
        self.acknowledged = self.begun

    def compact(self) -> None:
        self.gallery.compact()

    def _begin(self, state: State) -> None:
        self.states.append(state)
        self.begun += 1


class Readers:
    """Threads that query all the time; `errors` collects what was wrong."""

    def __init__(self, writer: Writer, threads: int) -> None:
        self._writer = writer
        self._stop = Event()
        self.errors: list[str] = []
        self.checks = 0
        self._threads = [Thread(target=self._run, args=(seed,), daemon=True) for seed in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set() and not self.errors:
            try:
                self._check(rng)
                self.checks += 1
            except BaseException:
                self.errors.append(traceback.format_exc())

    def _check(self, rng: random.Random) -> None:
        writer = self._writer
        oldest = writer.acknowledged
        snapshot = writer.gallery.snapshot()
        newest = writer.begun
        # Acknowledged changes must show, and nothing may show that was never begun.
        possible = writer.states[oldest : newest + 1]
        if not snapshot.count:
            assert any(not state for state in possible), "the gallery looks empty"
            return
        if rng.random() < 0.1:
            found = dict(zip(*self._items(snapshot, snapshot.live_rows()), strict=True))
            assert found in possible, "the snapshot is no state that the gallery was in"
        self._query(snapshot, possible, rng)

    def _items(self, snapshot: Snapshot, rows: np.ndarray) -> tuple[list[str], list[int]]:
        """Ids and versions of rows, after a look at everything else that is known of them."""
        ids = snapshot.ids(rows)
        data = snapshot.metadata(rows)
        stored = snapshot.rows.take(rows)
        for item, entry, row in zip(ids, data, stored, strict=True):
            assert entry == metadata(item, entry["version"]), f"metadata of {item} is {entry}"
            np.testing.assert_array_equal(row, self._writer.row(item, entry["version"]))
        return ids, [entry["version"] for entry in data]

    def _query(self, snapshot: Snapshot, possible: list[State], rng: random.Random) -> None:
        third = rng.randrange(3)
        where = rng.choice([None, {"third": third}, f"third = {third} and tags = all", {"version": {"<": 0}}])
        target = rng.choice(list(possible[0]) or ["i0"])
        goal = self._writer.row(target, possible[0].get(target, 0))
        terms = QueryTerms(goal[None, None], np.ones((1, 1, DIM), np.float32), ("likeness",))
        allowed = snapshot.where(where)
        top = make_scorer(snapshot.rows, "auto").topk(terms, 10, allowed)
        rows = top.rows[0][top.rows[0] >= 0]
        assert len(rows) == min(10, snapshot.matching(where)), "the number of hits is not exact"
        ids, versions = self._items(snapshot, rows)
        for item, version in zip(ids, versions, strict=True):
            assert any(state.get(item) == version for state in possible), f"{item} {version} is a phantom"
            assert where is None or int(item[1:]) % 3 == third, f"{item} does not fit {where}"
        if where is None:
            at = snapshot.row(target)
            if at is not None and all(state.get(target) == possible[0].get(target) for state in possible):
                assert ids[0] == target, f"{target} should be the best hit, found {ids}"


def anonymous_memory() -> int:
    """Bytes of memory that belong to this process alone (mapped files apart)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")
