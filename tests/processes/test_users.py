"""What is closed is given back when the last call that uses it is done, and those calls are answered."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Searcher, VectorSearcher
from cir_infer.errors import UsageError
from cir_infer.processes.users import Users
from cir_infer.shards import FollowingSearcher, ShardedSearcher
from tests.shards.support import write_shards

TEXT = "is red"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path)


def asked_while_closed(searcher: Any, ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a call gives whose searcher is closed between its snapshot and its look-up of the hits."""
    from cir_infer.gallery.snapshot import Snapshot

    inside, closed = threading.Event(), threading.Event()
    items = Snapshot.items

    def late(self: Any, rows: Any) -> Any:
        inside.set()
        assert closed.wait(60)
        return items(self, rows)

    found: list[Any] = []

    def work() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            found.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(Snapshot, "items", late)
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(60)
        searcher.close()
        closed.set()
        thread.join(60)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@pytest.mark.parametrize(
    "kind", ["query", "vectors", "explain", "batch", "sharded", "sharded vectors", "item"]
)
def test_calls_under_way_are_answered_and_the_next_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Their gallery "was removed", or its log was: it was closed under them."""
    picture, queries = folder / "1.png", np.ones((1, 8))
    if kind.startswith("sharded"):
        searcher: Any = ShardedSearcher(folder / "b.cir", folder / "s")
    elif kind == "vectors":
        searcher = VectorSearcher(folder / "b.gallery")
    else:
        searcher = Searcher(folder / "b.cir", folder / "b.gallery")
    ask: Callable[[], Any] = {
        "query": lambda: len(searcher.query(picture, TEXT)),
        "sharded": lambda: len(searcher.query(picture, TEXT)),
        "vectors": lambda: len(searcher.search_vectors(queries)[0]),
        "sharded vectors": lambda: len(searcher.search_vectors(queries)[0]),
        "explain": lambda: len([searcher.explain("i2", picture, TEXT)] * 4),
        "batch": lambda: len(list(searcher.query_batch([picture] * 4, [TEXT] * 4, batch_size=1))),
        "item": lambda: len([searcher.item("i1")] * 4),
    }[kind]
    assert asked_while_closed(searcher, ask, monkeypatch) == 4
    with pytest.raises(UsageError, match=r"this searcher.* is closed"):
        ask()
    assert not searcher._owned, "nobody uses it any more, so it is given back"


def test_hits_are_explained_to_the_end_and_no_further(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher(folder / "b.cir", folder / "b.gallery")
    hits = searcher.query(folder / "1.png", TEXT)
    assert asked_while_closed(searcher, lambda: hits.explain(0).id, monkeypatch) == hits[0].id
    with pytest.raises(UsageError, match=r"this searcher.* is closed"):
        hits.explain(0)


def test_a_batch_that_nobody_ends_holds_nothing_for_ever(folder: Path) -> None:
    searcher = Searcher(folder / "b.cir", folder / "b.gallery")
    answers = searcher.query_batch([folder / "1.png"] * 4, [TEXT] * 4, batch_size=1)
    next(answers)
    searcher.close()
    assert len(next(answers)) == 4 and searcher._owned
    del answers
    gc.collect()
    assert not searcher._owned


@pytest.mark.parametrize("sharded", [False, True])
def test_what_begins_after_the_end_is_refused_whoever_owns_the_engine(folder: Path, sharded: bool) -> None:
    """A batch asked a gallery that was closed, shards were asked anew by threads that nobody ended."""
    with Engine(folder / "b.cir") as engine:
        searcher: Any = (
            ShardedSearcher(engine, folder / "s") if sharded else Searcher(engine, folder / "b.gallery")
        )
        batch = searcher.query_batch([folder / "1.png"] * 2, [TEXT] * 2)
        searcher.close()
        for begin in (lambda: next(batch), searcher.warm_up, searcher.describe, lambda: searcher.item("i1")):
            with pytest.raises(UsageError, match=r"this searcher.* is closed; make another"):
                begin()


def test_a_batch_keeps_the_version_that_answers_it(folder: Path) -> None:
    """Each look at a version that had changed meanwhile kept another one open than the one that answered."""
    with Engine(folder / "b.cir") as engine:
        versions = itertools.count()
        follow = FollowingSearcher(
            lambda: next(versions), lambda: ShardedSearcher(engine, folder / "s"), every=0
        )
        with follow:
            batch = follow.query_batch([folder / "1.png"] * 3, [TEXT] * 3, batch_size=1)
            assert len(next(batch)) == 4
            for _ in range(3):
                follow.current()
            assert [len(hits) for hits in batch] == [4, 4]


def test_a_call_that_went_without_a_word_is_nobody() -> None:
    """As one that an interrupt ended before it could say so, or another thread's in a forked child."""
    given: list[int] = []
    users = Users(lambda: given.append(1), lambda: UsageError("it is closed"))

    class Interrupt(BaseException):
        pass

    def fail() -> None:
        users.end()
        assert not given, "it is used"
        raise Interrupt

    with pytest.raises(Interrupt):
        users.run(fail)
    assert given
    with pytest.raises(UsageError, match="it is closed"):
        users.run(lambda: 3)
    with pytest.raises(UsageError, match="it is closed"):
        next(users.each(iter([1, 2])))
