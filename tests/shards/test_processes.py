"""Searchers over one gallery and over many, in forked children and out of pickle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Searcher
from cir_infer.errors import UsageError
from cir_infer.processes.threads import Threads
from cir_infer.shards import HttpShard, ShardedSearcher, follow_folder
from tests.processes.forking import exit_code_of_fork
from tests.shards.support import write_shards

TEXT = "is red"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path)


@pytest.fixture
def searchers(folder: Path) -> Iterator[list[Any]]:
    """Over one gallery, over shards, over shards with a deadline, and one that follows."""
    bundle = folder / "b.cir"
    made: list[Any] = [
        Searcher(bundle, folder / "b.gallery"),
        ShardedSearcher(bundle, folder / "s"),
        ShardedSearcher(bundle, folder / "s", replicas=2, deadline=30, partial="allow"),
        follow_folder(folder / "s", bundle),
    ]
    yield made
    for searcher in made:
        searcher.close()


def test_a_batch_that_was_begun_before_a_fork_goes_on_in_the_child(
    folder: Path, searchers: list[Any]
) -> None:
    """It waited for ever for threads of its parent's."""
    pictures = [folder / f"{number % 4}.png" for number in range(6)]
    for searcher in searchers:
        answers = searcher.query_batch(pictures, [TEXT] * 6, batch_size=2)
        first = next(answers)

        def work(answers: Iterator[Any] = answers, first: Any = first) -> int:
            return int([hits.ids for hits in answers][3] != first.ids)

        assert exit_code_of_fork(work) == 0
        assert len(list(answers)) == 5


def test_threads_of_a_parent_do_its_work_in_the_child_at_once() -> None:
    threads = Threads(2)
    assert threads.submit(lambda: 1).result() == 1
    assert exit_code_of_fork(lambda: threads.submit(lambda: 0).result()) == 0
    threads.close()


def test_searchers_over_shards_are_opened_again_where_they_are_copied(
    folder: Path, searchers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = folder / "1.png"
    expected = searchers[0].query(picture, TEXT)
    monkeypatch.chdir(folder)
    with ShardedSearcher("b.cir", "s") as relative:
        packed = [pickle.dumps(searcher) for searcher in (*searchers[:3], relative)]
    monkeypatch.chdir("/")
    for searcher in (*map(pickle.loads, packed), copy.deepcopy(searchers[2])):
        with searcher:
            hits = searcher.query(picture, TEXT)
            assert sorted(hits.scores) == sorted(expected.scores) and hits.coverage == 1
            assert isinstance(searcher, Searcher) or len(searcher.shards) == 2
    assert [len(group) for group in copy.deepcopy(searchers[2]).shards] == [2, 2]
    with pytest.raises(UsageError, match="copied or pickled"):
        pickle.dumps(searchers[3])
    shard = pickle.loads(pickle.dumps(HttpShard("http://127.0.0.1:1", "key", 2.5)))
    assert shard.place == "http://127.0.0.1:1" and shard._headers["Authorization"] == "Bearer key"
