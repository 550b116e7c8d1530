"""Refined hits of a batch: what shards hold of them is asked once, and one that is gone costs itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cir_infer import Engine, Searcher
from cir_infer.errors import CirError, GalleryError, ShardError
from cir_infer.hits import Hit
from cir_infer.shards import HttpShard, LocalShard, ShardedSearcher, wire
from cir_infer.shards import searcher as sharded
from cir_infer.shards.wire import read_held, told_held
from tests.serving.support import make_gallery, running
from tests.shards.support import Odd, write_shards


def nothing(_: int) -> None:
    """A shard that works."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder / "b.cir", "cpu", 1) as opened:
        yield opened


def odd_shards(folder: Path, *before: Callable[[int], None]) -> list[Odd]:
    return [
        Odd(LocalShard(folder / "s" / f"{n:04}.gallery"), what)
        for n, what in enumerate(before or (nothing, nothing))
    ]


def test_a_batch_of_refined_hits_asks_each_shard_once(folder: Path, engine: Engine) -> None:
    """Each had asked by itself, one after the other: as many ways to other machines as queries."""
    shards = odd_shards(folder)
    with ShardedSearcher(engine, shards) as searcher, Searcher(engine, folder / "b.gallery") as one:
        hits = [searcher.item(f"i{n}") for n in (2, 0, 3, 1, 2)]
        for shard in shards:
            shard.asked_for.clear()
        texts = ["is red", "is blue", "is green", "is long", "is short"]
        found = list(searcher.query_batch(hits, texts, k=2))
        assert [shard.asked_for for shard in shards] == [[["i2", "i0", "i3", "i1"]]] * 2
        expected = list(one.query_batch(hits, texts, k=2))
        assert [answer.ids for answer in found] == [answer.ids for answer in expected]
        for shard in shards:
            shard.asked_for.clear()
        assert len(found[0].explain_all(errors="return")) == 2
        assert all(len(shard.asked_for) == 2 for shard in shards), "for the reference, and for all hits"


def test_one_that_is_gone_costs_itself(folder: Path, engine: Engine) -> None:
    shards = odd_shards(folder)
    with ShardedSearcher(engine, shards) as searcher:
        hits = [Hit("i0"), Hit("gone"), Hit("i1", source="/elsewhere.png"), Hit("i2"), Hit("\ud800")]
        found = list(searcher.query_batch(hits, ["is red"] * 5, k=3, errors="return"))
        assert [isinstance(answer, CirError) for answer in found] == [False, True, True, False, True]
        assert "no shard holds an item 'gone'" in str(found[1]) and "was replaced" in str(found[2])
        assert [len(found[at]) for at in (0, 3)] == [3, 3]  # type: ignore[arg-type]


def test_what_other_shards_hold_is_refined_while_one_is_away(folder: Path, engine: Engine) -> None:
    class Away(Odd):
        def held(self, *_: object) -> list[object]:  # type: ignore[override]
            raise ShardError("it is away")

    one, other = odd_shards(folder)
    ids = [f"i{n}" for n in range(4)]
    of_one = {item for item in ids if one.held([item]) != [None]}
    assert 0 < len(of_one) < 4
    away = Away(LocalShard(folder / "s" / "0001.gallery"), nothing)
    with ShardedSearcher(engine, [one, away]) as searcher:
        found = list(searcher.query_batch([Hit(item) for item in ids], ["is red"] * 4, k=1, errors="return"))
        for item, answer in zip(ids, found, strict=True):
            assert isinstance(answer, ShardError) == (item not in of_one), item
        with pytest.raises(ShardError, match="it is away"):
            searcher.item("gone")
    with (
        ShardedSearcher(engine, [one, other]) as searcher,
        pytest.raises(GalleryError, match="no shard holds"),
    ):
        searcher.item("gone")


def test_many_are_asked_in_parts(folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "MOST_HELD", 3)
    shards = odd_shards(folder)
    with ShardedSearcher(engine, shards) as searcher:
        found = list(searcher.query_batch([Hit(f"i{n}") for n in range(4)], ["is red"] * 4, k=1))
        assert len(found) == 4
        assert [[len(asked) for asked in shard.asked_for] for shard in shards] == [[3, 1]] * 2


def test_items_of_much_metadata_come_in_several_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 of them were one answer of hundreds of MB, which was refused where it was read."""
    bundle = make_gallery(tmp_path)
    ids = [f"sku-{number}" for number in range(50)]  # some of which are not there
    near = LocalShard(bundle.with_suffix(".gallery"))
    with closing(near), running(bundle, shard=True) as service:
        far = HttpShard(f"http://127.0.0.1:{service.client.port}")
        monkeypatch.setattr(wire, "_MOST_TOLD", 1000)
        assert 1 < len(told_held(near.held(ids))["items"]) < 10
        for held, again in zip(near.held(ids), far.held(ids, 30.0), strict=True):
            assert (held is None) == (again is None)
            if held is not None and again is not None:
                assert held.told() == again.told() and held.vector.tobytes() == again.vector.tobytes()
        assert far.held([]) == []
    for body in (b'{"items": []}', b'{"items": [null, null]}'):
        with pytest.raises(CirError, match="expected 1 to 1"):
            read_held(body, 1)
