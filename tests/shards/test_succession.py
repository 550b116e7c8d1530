"""Other shards take the place of the old ones while they are asked and written to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer import VectorSearcher
from cir_infer.errors import GalleryError, UsageError
from cir_infer.shards import ShardedGallery, ShardedSearcher, follow_folder, rebalance, remove_old, succession
from cir_infer.shards.layout import shard_of
from cir_infer.shards.listing import read_listing
from cir_infer.shards.succession import succeed
from tests.gallery.support import DIM, filled, names, vectors


def contents(folder: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    with ShardedGallery(folder, read_only=True) as gallery:
        for number, shard in enumerate(gallery.shards):
            snapshot = shard.snapshot()
            rows = snapshot.live_rows()
            for row, item in zip(rows, snapshot.items(rows), strict=True):
                assert shard_of(item.id, len(gallery.shards)) == number and item.id not in found
                found[item.id] = (item.metadata, item.source, snapshot.vector(int(row)).tobytes())
    return found


def test_nothing_is_lost_under_writers_and_queries(tmp_path: Path) -> None:
    """A writer that follows goes on; each answer is of the old shards or of the new ones, and whole."""
    folder = tmp_path / "s"
    with filled(tmp_path / "g", 60) as one:
        ShardedGallery.split(one, folder, 2).close()
    stop, errors = threading.Event(), []
    kept: dict[str, bytes] = {}

    def write() -> None:
        rng = np.random.default_rng(5)
        gallery, number = ShardedGallery(folder, wait=60), 0
        while not stop.is_set() or number < 40:
            item, row = f"w{number % 25}", rng.standard_normal((1, DIM)).astype(np.float32)
            try:
                if number % 5 == 4 and item in kept:
                    gallery.of(item).remove([item])
                    kept.pop(item)
                else:
                    gallery.of(item).add_vectors(ids=[item], vectors=row, existing="replace")
                    kept[item] = row.tobytes()
            except GalleryError:  # other shards: what was refused is done again there
                gallery.close()
                gallery = ShardedGallery(folder, wait=60)
                continue
            number += 1
        gallery.close()

    def ask() -> None:
        with follow_folder(folder, every=0.01) as searcher:
            while not stop.is_set():
                (hits,) = searcher.search_vectors(vectors(1, 3), k=60, exclude=[f"w{n}" for n in range(25)])
                if hits.coverage != 1.0 or sorted(hit.id for hit in hits) != sorted(names(60)):
                    errors.append(hits)
            changes.append(searcher.changes)

    changes: list[int] = []
    threads = [threading.Thread(target=write), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    try:
        for into in (5, 3, 7):
            old = rebalance(folder, into)
            assert len(read_listing(folder).shards) == into
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    found = contents(folder)
    assert not errors and changes[0] >= 1
    assert {item for item in found if item.startswith("w")} == set(kept)
    for item, row in kept.items():
        held = np.frombuffer(found[item][2], np.float32)
        np.testing.assert_allclose(held, np.frombuffer(row, np.float32), rtol=2e-3, atol=2e-3)
    remove_old(folder, old)
    with pytest.raises(GalleryError, match="is a shard"):
        remove_old(folder, [read_listing(folder).shards[0]])


def test_changes_between_the_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added, replaced, described and removed while the new shards are filled is in them."""
    real, between = succession.spread, [lambda: None]

    def spread(*args: Any, **kwargs: Any) -> int:
        count = real(*args, **kwargs)
        between[0]()
        return count

    monkeypatch.setattr(succession, "spread", spread)

    kinds = ["add", "describe", "remove"]

    @settings(max_examples=15)
    @given(
        changes=st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 14)), max_size=12),
        into=st.integers(1, 6),
        dtype=st.sampled_from(["float32", "float16"]),
    )
    def run(changes: list[tuple[str, int]], into: int, dtype: str) -> None:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        ShardedGallery.create(folder, 2, dtype, dimension=DIM).close()
        model: dict[str, int] = {}
        told: dict[str, dict[str, int]] = {}
        left, turns = list(changes), [0]
        with ShardedGallery(folder) as gallery:

            def add(which: int, seed: int) -> None:
                item = f"i{which}"
                gallery.of(item).add_vectors(ids=[item], vectors=vectors(1, seed), existing="replace")
                model[item], told[item] = seed, {}

            def change() -> None:
                nonlocal told
                turns[0] += 1
                if turns[0] <= 2:  # the first pass; in the last nobody else may write
                    for kind, which in left[: len(changes) // 2 + 1]:
                        item = f"i{which}"
                        if kind == "add":
                            add(which, 100 + len(left))
                        elif kind == "describe":
                            fields = {"told": len(left)}
                            gallery.of(item).set_metadata([item], [fields], missing="skip")
                            told |= {item: fields} if item in told else {}
                        else:
                            gallery.of(item).remove([item], missing="skip")
                            model.pop(item, None)
                            told.pop(item, None)
                        left.pop(0)

            for which in range(8):
                add(which, which)
            between[0] = change
            rebalance(folder, into)
            between[0] = lambda: None
            with pytest.raises(GalleryError, match="other shards took its place"):
                gallery.shards[0].add_vectors(ids=["late"], vectors=vectors(1))
        found = contents(folder)
        assert {item: known[0] for item, known in found.items()} == told and not left
        for item, seed in model.items():
            stored = vectors(1, seed)[0].astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(np.frombuffer(found[item][2], np.float32), stored)

    run()


def test_what_was_begun_and_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    with filled(tmp_path / "g", 30) as one:
        ShardedGallery.split(one, folder, 2).close()
        before = contents(folder)

        def broken(*_: Any) -> int:
            raise GalleryError("the disk is full")

        listing = read_listing(folder)
        with pytest.raises(GalleryError, match="disk is full"):
            succeed(folder, listing, listing._replace(shards=("",) * 3), "float16", broken)
        with pytest.raises(GalleryError, match="hold 0 items and the old 30"):
            succeed(folder, listing, listing._replace(shards=("",) * 3), "float16", lambda old, new: 0)
        assert contents(folder) == before and read_listing(folder) == listing
        with ShardedGallery(folder) as gallery:  # killed right before its switch: refused until it is ended
            gallery.shards[1].retire()
            with pytest.raises(GalleryError, match="cir-cluster rebalance"):
                gallery.shards[1].compact()
            assert gallery.shards[1].verify().ok
        old = rebalance(folder, 4)
        assert contents(folder) == before and old == list(listing.shards)
        with ShardedSearcher(None, folder) as searcher, VectorSearcher(one) as whole:
            mine, theirs = searcher.search_vectors(vectors(3), 30), whole.search_vectors(vectors(3), 30)
            assert [hits.scores for hits in mine] == [hits.scores for hits in theirs]
        for wrong in (0, 257):
            with pytest.raises(UsageError):
                rebalance(folder, wrong)
        with pytest.raises(GalleryError, match="no sharded gallery"):
            rebalance(tmp_path / "g", 2)
        with ShardedGallery(folder) as gallery:
            item = gallery.shards[0].ids[0]
            gallery.shards[1].add_vectors(ids=[item], vectors=vectors(1))
        with pytest.raises(GalleryError, match=r"an id may be in two|belongs in shard"):
            rebalance(folder, 2)
        assert len(read_listing(folder).shards) == 4
