"""Replicas that fail, hang or are slow, and what an answer says of shards that are missing.

No outcome depends on how fast anything is: what hangs hangs until the test lets it go.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery, VectorSearcher
from cir_infer.errors import GalleryError, MissingShard, ShardError, UsageError
from cir_infer.shards import Found, LocalShard, ShardedGallery, ShardedSearcher
from tests.gallery.support import DIM, filled, vectors
from tests.processes.forking import exit_code_of_fork
from tests.shards.support import Odd, write_shards
from tests.shards.test_shards import told

COUNT = 60


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gallery]]:
    """Two shards, which no test changes."""
    folder = tmp_path_factory.mktemp("shards")
    with filled(folder / "g", COUNT) as one, ShardedGallery.split(one, folder / "s", 2) as made:
        yield made.shards


def failing(error: Exception, until: int = 10**9) -> Callable[[int], None]:
    def fail(number: int) -> None:
        if number < until:
            raise error

    return fail


def nothing(number: int) -> None: ...


def test_a_replica_that_fails_is_passed_over(galleries: list[Gallery]) -> None:
    first, second = galleries
    for error in (ShardError("it is gone"), GalleryError("a file is damaged")):
        good, bad = (Odd(LocalShard(first), what) for what in (nothing, failing(error)))
        with ShardedSearcher(None, [[bad, good], second]) as searcher:
            with ShardedSearcher(None, [first, second]) as whole:
                for seed in range(6):
                    mine, theirs = (s.search_vectors(vectors(2, seed))[0] for s in (searcher, whole))
                    assert told(mine) == told(theirs) and mine.coverage == 1.0
            assert bad.calls >= 1 and good.calls == 6
            assert searcher.counts.retried == bad.calls and searcher.counts.missing == 0


def test_a_shard_that_comes_back_in_time_is_waited_for(galleries: list[Gallery]) -> None:
    first, second = galleries
    bad = Odd(LocalShard(first), failing(ShardError("it starts"), until=3))
    with ShardedSearcher(None, [bad, second], deadline=600) as searcher:
        assert searcher.search_vectors(vectors(1))[0].coverage == 1.0
        assert bad.calls == 4 and searcher.counts.retried == 3
    # Without a deadline, or where it is no matter of time, nobody waits.
    for error, deadline in ((ShardError("it starts"), None), (GalleryError("damaged"), 600)):
        bad = Odd(LocalShard(first), failing(error, until=3))
        with ShardedSearcher(None, [bad, second], deadline=deadline) as searcher:
            with pytest.raises(ShardError, match=r"it starts|damaged"):
                searcher.search_vectors(vectors(1))
            assert bad.calls == 1


def test_a_slow_replica_is_overtaken(galleries: list[Gallery]) -> None:
    """Once it is known how long answers take, a hanging replica delays nobody for ever, deadline or none."""
    first, second = galleries
    go, hang = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        if hang.is_set():
            go.wait()

    slow, good = Odd(LocalShard(first), wait), Odd(LocalShard(first), nothing)
    try:
        with ShardedSearcher(None, [[slow, good], second]) as searcher:
            for seed in range(40):
                searcher.search_vectors(vectors(1, seed))
            hang.set()
            before = slow.calls
            for seed in range(20):
                assert searcher.search_vectors(vectors(1, seed))[0].coverage == 1.0
            assert 1 <= slow.calls - before <= 4 and searcher.counts.hedged >= 1
            go.set()
    finally:
        go.set()


def test_all_that_a_query_asks_has_one_deadline(tmp_path: Path) -> None:
    """Where copies of the reference are left out, shards are asked again, each time with all of it."""
    folder = write_shards(tmp_path)
    left: list[float] = []

    class Timed(LocalShard):
        def search(self, *asked: Any) -> Found:
            left.append(asked[-1])
            time.sleep(0.05)
            return super().search(*asked)

    with Engine(folder / "b.cir") as engine, Gallery.open(folder / "b.gallery", engine) as gallery:
        gallery.add([folder / "0.png"] * 9, ids=[f"copy{number}" for number in range(9)])
        with ShardedSearcher(engine, [Timed(gallery)], deadline=60) as searcher:
            hits = searcher.query(folder / "0.png", "is red", k=2, exclude_reference=True)
    assert len(hits) == 2 and len(left) > 2
    assert all(later <= earlier - 0.05 for earlier, later in pairwise(left))


def test_what_hangs_is_named_and_not_asked_for_ever(galleries: list[Gallery]) -> None:
    go = threading.Event()
    hanging = Odd(LocalShard(galleries[0]), lambda _: bool(go.wait()) and None)
    try:
        with ShardedSearcher(None, [hanging], deadline=0.01) as searcher:
            for _ in range(8):
                with pytest.raises(ShardError, match=r"1 of 1 shards .* items were not looked at") as raised:
                    searcher.search_vectors(vectors(1))
                (missing,) = raised.value.missing
                assert missing[:3] == (0, hanging.place, len(galleries[0])) and missing.reason
            assert searcher.counts.asked == 4
            with pytest.raises(ShardError):  # nothing at all is no part of an answer
                ShardedSearcher(None, [hanging], deadline=0.01, partial="allow").search_vectors(vectors(1))
    finally:
        go.set()


def test_a_forked_child_has_none_of_its_parents_calls(galleries: list[Gallery]) -> None:
    go, parent = threading.Event(), os.getpid()
    hanging = Odd(
        LocalShard(galleries[0]), lambda _: None if os.getpid() != parent else bool(go.wait()) and None
    )

    def answered() -> int:
        while True:
            with suppress(ShardError):  # it did not answer in time
                return int(len(searcher.search_vectors(vectors(1), k=COUNT)[0]) != len(galleries[0]))

    try:
        with ShardedSearcher(None, [hanging], deadline=0.01) as searcher:
            for _ in range(5):
                with pytest.raises(ShardError):
                    searcher.search_vectors(vectors(1))
            assert exit_code_of_fork(answered) == 0
    finally:
        go.set()


def test_calls_that_an_interrupt_kept_from_their_threads_do_not_count(
    galleries: list[Gallery], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardedSearcher(None, [galleries[0]]) as searcher:
        with monkeypatch.context() as interrupted:

            def submit(*_: object) -> None:
                raise KeyboardInterrupt

            interrupted.setattr(searcher._fanout.get()._threads, "submit", submit)
            for _ in range(8):
                with pytest.raises((KeyboardInterrupt, ShardError)):
                    searcher.search_vectors(vectors(1))
        gc.collect()
        assert len(searcher.search_vectors(vectors(1), k=COUNT)[0]) == len(galleries[0])


def test_an_answer_says_what_is_missing(galleries: list[Gallery]) -> None:
    first, second = galleries
    bad = Odd(LocalShard(second), failing(GalleryError("a file is damaged")))
    with ShardedSearcher(None, [first, bad]) as searcher, pytest.raises(ShardError) as raised:
        searcher.search_vectors(vectors(1))
    assert raised.value.missing == (MissingShard(1, bad.place, len(second), "a file is damaged"),)
    assert pickle.loads(pickle.dumps(raised.value)).missing == raised.value.missing
    with ShardedSearcher(None, [first, bad], partial="allow") as searcher, VectorSearcher(first) as whole:
        mine, theirs = (s.search_vectors(vectors(3), k=100) for s in (searcher, whole))
        assert [told(hits) for hits in mine] == [told(hits) for hits in theirs]
        assert mine[0].coverage == pytest.approx(len(first) / COUNT)
        assert mine[0].generations == (first.snapshot().generation, None)
        assert mine[0][:2].coverage == mine[0].coverage and theirs[0].coverage == 1.0
        assert searcher.item(first.ids[0]).id == first.ids[0]


def test_a_fault_of_the_question_is_not_the_shards(galleries: list[Gallery]) -> None:
    with ShardedSearcher(None, galleries, deadline=600, partial="allow") as searcher:
        with pytest.raises(UsageError):
            searcher.search_vectors(vectors(1), where="number <")
        assert searcher.counts.retried == 0


def test_no_answer_is_of_two_bundles(tmp_path: Path) -> None:
    """A replica that was changed over to another bundle under a searcher is not asked any more."""

    class Changed(Odd):
        def search(self, *asked: Any) -> Found:
            return super().search(*asked)._replace(fingerprint="next")

    shards = [filled(tmp_path / str(number), 9, fingerprint="now") for number in range(2)]
    changed = Changed(LocalShard(shards[0]), nothing)
    with ShardedSearcher(None, [[changed, shards[0]], shards[1]], deadline=600) as searcher:
        for seed in range(4):
            assert len(searcher.search_vectors(vectors(1, seed), k=99)[0]) == 18
    with (
        ShardedSearcher(None, [changed, shards[1]]) as searcher,
        pytest.raises(ShardError, match=r"rows of 'next' by now, .* of 'now'"),
    ):
        searcher.search_vectors(vectors(1))


def test_replicas_are_of_one_gallery(tmp_path: Path, galleries: list[Gallery]) -> None:
    first, second = galleries
    copy = tmp_path / "copy"
    first.backup(copy)
    with ShardedSearcher(None, [[first, copy], second], replicas=3) as searcher:
        assert [len(replicas) for replicas in searcher.shards] == [2, 3]
        assert len(searcher.search_vectors(vectors(1), k=COUNT)[0]) == COUNT
    with pytest.raises(GalleryError, match="is another gallery than"):
        ShardedSearcher(None, [[first, second]])
    # A backup that took the place of its gallery, which is changed on, has backups of its own.
    with Gallery.open(copy) as restored:
        restored.remove([restored.ids[0]])
        restored.backup(tmp_path / "later")
        left = len(restored)
    with ShardedSearcher(None, [[copy, tmp_path / "later"], second]) as searcher:
        assert len(searcher.search_vectors(vectors(1), k=COUNT)[0]) == left + len(second)
    # To the gallery that goes on without it, it is another: by turns the one answered, and the other.
    with pytest.raises(GalleryError, match="was a backup and was changed since"):
        ShardedSearcher(None, [[first, copy], second])
    with pytest.raises(GalleryError, match="again, or a copy of it"):
        ShardedSearcher(None, [first, [copy, tmp_path / "later"]])
    with pytest.raises(GalleryError, match="again, or a copy of it"):
        ShardedSearcher(None, [first, copy])
    for wrong in ({"replicas": 0}, {"deadline": 0}, {"deadline": True}, {"partial": "maybe"}):
        with pytest.raises(UsageError):
            ShardedSearcher(None, galleries, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="empty list"):
        ShardedSearcher(None, [[]])


@pytest.mark.parametrize(
    "later", ["", "the origin is compacted", "the copy is changed", "the origin is away"]
)
def test_a_backup_of_a_backup_is_no_other_shard(tmp_path: Path, galleries: list[Gallery], later: str) -> None:
    """It knows only the backup that it was made of by name; its items were answered twice."""
    first, second = galleries
    first.backup(tmp_path / "copy")
    with Gallery.open(tmp_path / "copy") as copy:
        copy.backup(tmp_path / "deep")
    shutil.rmtree(tmp_path / "copy")
    with Gallery.open(tmp_path / "deep") as deep:
        deep.backup(tmp_path / "deeper")
    known: list[Any] = [first, second]
    if later == "the origin is compacted":
        first.remove(first.ids[:3])
        assert first.compact().rows_dropped == 3
    elif later == "the copy is changed":
        with Gallery.open(tmp_path / "deeper") as deeper:
            deeper.add_vectors(ids=["new"], vectors=vectors(1))
    elif later == "the origin is away":
        known = [tmp_path / "deep", second]
    with pytest.raises(GalleryError, match="again, or a copy of it"):
        ShardedSearcher(None, [*known, tmp_path / "deeper"])
    with ShardedSearcher(None, [tmp_path / "deeper", second]) as searcher:
        assert len(searcher.search_vectors(vectors(1), k=1)[0]) == 1


@pytest.mark.parametrize("asked", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_queries(tmp_path: Path, asked: int) -> None:
    """Ids and scores of every one are those of one gallery, over 2 and 7 shards."""
    rng = np.random.default_rng(23)
    rows = rng.standard_normal((40, DIM)).astype(np.float32)[rng.integers(0, 40, 400)]  # many ties
    ids = [f"i{number}" for number in range(len(rows))]
    queries = rng.standard_normal((asked, DIM))
    for count in (2, 7):
        place = tmp_path / str(count)
        place.mkdir()
        cuts = np.sort(rng.integers(0, len(rows), count - 1))
        with Gallery.create(place / "one", dimension=DIM, dtype="float16") as one:
            shards = []
            for number, part in enumerate(np.split(np.arange(len(rows)), cuts)):
                shards.append(Gallery.create(place / f"{number}", dimension=DIM, dtype="float16"))
                if len(part):
                    for gallery in (one, shards[-1]):
                        gallery.add_vectors(ids=[ids[n] for n in part], vectors=rows[part])
            with ShardedSearcher(None, shards) as searcher, VectorSearcher(one) as whole:
                mine, theirs = (s.search_vectors(queries, k=5) for s in (searcher, whole))
                assert [(h.ids, h.scores) for h in mine] == [(h.ids, h.scores) for h in theirs]
            for shard in shards:
                shard.close()
