"""Readers beside a writer, against a model that knows the right answer."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cir_infer.gallery import Gallery
from tests.gallery.load import Readers, Writer, anonymous_memory

ITEMS = [f"i{number}" for number in range(200)]


class GalleryUnderLoad(RuleBasedStateMachine):
    """Changes chosen by hypothesis, while threads query; after each, the gallery is what the model says."""

    threads = 16

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.writer = Writer(self.folder / "g")
        self.readers = Readers(self.writer, self.threads)
        self.held: list = []

    @property
    def state(self) -> dict[str, int]:
        return self.writer.states[-1]

    @rule(items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=30, unique=True))
    def store(self, items: list[str]) -> None:
        self.writer.store(items)

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def describe(self, data: st.DataObject) -> None:
        held = sorted(self.state)
        self.writer.describe(data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True)))

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        held = sorted(self.state)
        self.writer.remove(data.draw(st.lists(st.sampled_from(held), min_size=1, max_size=20, unique=True)))

    @rule()
    def compact(self) -> None:
        self.writer.compact()

    @rule()
    def hold(self) -> None:
        """Keep a snapshot beyond the changes to come."""
        snapshot = self.writer.gallery.snapshot()
        self.held.append((snapshot, sorted(self.state)))

    @precondition(lambda self: self.held)
    @rule()
    def look_back(self) -> None:
        snapshot, ids = self.held.pop(0)
        assert sorted(snapshot.ids(snapshot.live_rows())) == ids
        assert snapshot.matching("tags = all") == len(ids)

    @rule()
    def verify(self) -> None:
        assert self.writer.gallery.verify().problems == []

    @rule()
    def look_from_elsewhere(self) -> None:
        with Gallery.open(self.writer.gallery.path, read_only=True) as other:
            assert sorted(other.ids) == sorted(self.state)

    @invariant()
    def as_the_model_says(self) -> None:
        gallery = self.writer.gallery
        assert len(gallery) == len(self.state)
        assert set(gallery.ids) == set(self.state)
        assert self.readers.errors == []

    def teardown(self) -> None:
        if not hasattr(self, "readers"):
            return
        self.readers.stop()
        errors = self.readers.errors
        self.writer.gallery.close()
        shutil.rmtree(self.folder)
        assert errors == []


def run(threads: int, examples: int, steps: int) -> None:
    GalleryUnderLoad.threads = threads
    run_state_machine_as_test(
        GalleryUnderLoad,
        settings=settings(max_examples=examples, stateful_step_count=steps, phases=[Phase.generate]),
    )


def test_queries_beside_changes_see_what_the_model_says() -> None:
    run(threads=4, examples=4, steps=15)


@pytest.mark.slow
def test_queries_beside_thousands_of_changes() -> None:
    run(threads=16, examples=60, steps=60)


def load(path: Path, threads: int, enough: Callable[[int], bool]) -> tuple[Readers, Writer, list[int]]:
    """Random changes beside reader threads until it is enough; samples of the memory on the way."""
    rng = random.Random(0)
    writer = Writer(path)
    writer.store(ITEMS)
    readers = Readers(writer, threads)
    memory = []
    changes = 0
    while not enough(changes) and not readers.errors:
        kind = rng.choice(["store", "store", "describe", "remove", "compact"])
        held = sorted(writer.states[-1])
        if kind == "store":
            writer.store(rng.sample(ITEMS, 20))
        elif kind == "describe":
            writer.describe(rng.sample(held, min(len(held), 20)))
        elif kind == "remove" and len(held) > 50:
            writer.remove(rng.sample(held, 15))
        else:
            writer.compact()
        changes += 1
        # The history that the model needs is the test's own; the oldest entries can go.
        for number in range(max(0, writer.acknowledged - 500), max(0, writer.acknowledged - 400)):
            writer.states[number] = {}
        memory.append(anonymous_memory())
    readers.stop()
    return readers, writer, memory


def test_load_for_a_moment(tmp_path: Path) -> None:
    readers, writer, _ = load(tmp_path / "g", 4, lambda changes: changes >= 20)
    assert readers.errors == [] and readers.checks > 0
    assert writer.gallery.verify().ok


@pytest.mark.slow
def test_load_for_minutes_keeps_memory_flat(tmp_path: Path) -> None:
    minutes = 5
    started = time.monotonic()
    readers, writer, memory = load(tmp_path / "g", 16, lambda _: time.monotonic() - started > 60 * minutes)
    assert readers.errors == []
    assert writer.gallery.verify().ok
    size = sum(path.stat().st_size for path in writer.gallery.path.rglob("*") if path.is_file())
    third = len(memory) // 3
    early, late = sorted(memory[third : 2 * third])[third // 2], sorted(memory[-third:])[third // 2]
    print(
        f"{minutes} minutes, 16 reader threads: {len(memory)} changes, {readers.checks} checked queries, "
        f"anonymous memory {early / 2**20:.1f} MiB (second third), {late / 2**20:.1f} MiB (last third), "
        f"gallery {size / 2**10:.0f} KiB"
    )
    assert late < 1.1 * early
    assert size < 16 << 20
