"""Shards as actors of a real Ray: answers, deaths, halts. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Gallery, VectorSearcher
from cir_infer.commands.cluster import main
from cir_infer.errors import GalleryError, ShardError, UsageError
from cir_infer.shards import ShardedGallery, ShardedSearcher
from tests.gallery.support import filled, names, vectors
from tests.shards.support import started_ray
from tests.shards.test_shards import told

pytest.importorskip("ray", reason="Ray is not installed: pip install 'cir-infer[ray]', or make ray-check")
pytestmark = pytest.mark.ray

from cir_infer.shards import ray as ray_shards  # noqa: E402
from cir_infer.shards.ray import RayShard, RayShards  # noqa: E402

COUNT = 80


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """A gallery, and beside it `s`, the same in two shards."""
    ray = started_ray()
    folder = tmp_path_factory.mktemp("ray")
    with filled(folder / "g", 0, fingerprint="model") as gallery:
        gallery.add_vectors(
            ids=names(COUNT), vectors=vectors(COUNT), metadata=[{"number": n} for n in range(COUNT)]
        )
        gallery.remove(["i7", "i9"])
        ShardedGallery.split(gallery, folder / "s", 2).close()
        yield gallery
    ray.shutdown()


@pytest.fixture(scope="module")
def actors(one: Gallery) -> Iterator[RayShards]:
    with RayShards.create("shop", Path(one.path).parent / "s", replicas=2) as shards:
        yield shards


def pid_of(shard: RayShard) -> int:
    """The process of an actor, once it is there."""
    while True:
        try:
            return shard.pid(600)
        except ShardError:
            time.sleep(0.05)


def answers(searcher: Any, count: int = 20) -> list[Any]:
    hits = [searcher.search_vectors(vectors(2, seed), k=9, where="number >= 5") for seed in range(count)]
    return [told(one) for several in hits for one in several]


def test_answers_are_those_of_one_gallery(one: Gallery, actors: RayShards) -> None:
    near = ShardedSearcher(None, Path(one.path).parent / "s")
    with VectorSearcher(one) as whole, near, ShardedSearcher(None, actors.groups, deadline=600) as searcher:
        ranked = [[row[:3] for row in hits] for hits in answers(searcher)]
        assert ranked == [[row[:3] for row in hits] for hits in answers(whole)]
        assert answers(searcher) == answers(near)
        assert searcher.item("i3") == near.item("i3") and len(searcher) == COUNT - 2
        with pytest.raises(GalleryError, match="no shard holds"):
            searcher.item("i7")
        with pytest.raises(UsageError, match=r"where|filter|number"):
            searcher.search_vectors(vectors(1), where="number <")


def test_a_killed_actor_costs_no_answer_and_comes_back(one: Gallery, actors: RayShards) -> None:
    with ShardedSearcher(None, actors.groups, deadline=600) as searcher:
        expected = answers(searcher)
        for group in actors.groups:
            before = pid_of(group[0])
            os.kill(before, signal.SIGKILL)
            assert answers(searcher) == expected
    for group in actors.groups:  # a shard of one replica: the call that waits is answered once it is back
        before = pid_of(group[0])
        os.kill(before, signal.SIGKILL)
        with ShardedSearcher(None, [[group[1]]], deadline=600) as whole:
            wanted = answers(whole, 2)
            with ShardedSearcher(None, [[group[0]]], deadline=600) as alone:
                assert answers(alone, 2) == wanted
        assert pid_of(group[0]) != before


def test_a_halted_actor_is_overtaken(one: Gallery, actors: RayShards) -> None:
    with ShardedSearcher(None, actors.groups, deadline=600) as searcher:
        expected = answers(searcher)
        halted = pid_of(actors.groups[0][0])
        os.kill(halted, signal.SIGSTOP)
        try:
            assert answers(searcher) == expected
        finally:
            os.kill(halted, signal.SIGCONT)
    assert pid_of(actors.groups[0][0]) == halted


def test_names_and_what_is_refused(one: Gallery, actors: RayShards, tmp_path: Path) -> None:
    folder = Path(one.path).parent / "s"
    with pytest.raises(UsageError, match="already"):
        RayShards.create("shop", folder)
    for wrong in ("", "a/b", None):
        with pytest.raises(UsageError, match="name is"):
            RayShards.create(wrong, folder)  # type: ignore[arg-type]
    with pytest.raises(GalleryError):
        RayShards.create("other", tmp_path)
    with pytest.raises(ShardError, match="0 run"):
        RayShards.attach("nobody", address=None)
    again = RayShards.attach("shop", address=None)
    assert [len(group) for group in again.groups] == [2, 2]
    assert again.each(lambda shard: shard.verify(600)) == [[[], []], [[], []]]
    with (
        filled(tmp_path / "other", 9, fingerprint="other") as other,
        pytest.raises(GalleryError, match="bundle"),
    ):
        ShardedSearcher(None, [other, again.groups[0]])


def test_the_command(one: Gallery, actors: RayShards, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(one.path).parent / "s")
    assert main(["create", "mine", folder, "--replicas", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(row["items"] for row in said["replicas"]) == COUNT - 2 and len(said["replicas"]) == 2
    with ShardedSearcher(None, RayShards.attach("mine", address=None).groups) as searcher:
        assert len(searcher.search_vectors(vectors(1))[0]) == 10
    assert main(["verify", "mine"]) == main(["status", "mine"]) == 0
    assert "process" in capsys.readouterr().out
    other = Path(folder).with_name("other")
    ShardedGallery.split(one, other, 2).close()
    listed = (other / "shards.json").read_bytes()
    assert main(["rebalance", str(other), "--into", "3", "--name", "mine"]) == 2
    assert "'mine' asks the shards of" in capsys.readouterr().err
    assert (other / "shards.json").read_bytes() == listed  # nobody would have gone over
    assert main(["stop", "mine"]) == 0
    assert "2 actors ended" in capsys.readouterr().out
    assert main(["create", "shop", folder]) == 2
    assert main(["stop", "mine"]) == 1


def test_what_a_killed_create_has_left_is_ended(one: Gallery) -> None:
    """Some of the actors, and rooms for others."""
    import ray

    folder = Path(one.path).parent / "s"
    RayShards.create("half", folder, replicas=2)
    for name in ("half/1/0/0/2/2", "half/1/1/1/2/2"):
        ray.kill(ray.get_actor(name, namespace="cir-infer"), no_restart=True)
    while len(ray_shards._running("half")) > 2:
        time.sleep(0.05)
    with pytest.raises(ShardError, match="2 run; end those with `cir-cluster stop half`"):
        RayShards.attach("half", address=None)
    with pytest.raises(UsageError, match="cir-cluster stop half"):
        RayShards.create("half", folder)
    assert RayShards.end("half", address=None) == 2 and RayShards.end("half", address=None) == 0
    while ray_shards._running("half"):
        time.sleep(0.05)
    RayShards.create("half", folder)
    again = RayShards.create("half2", folder)  # another one, whose name begins alike
    shards = RayShards.attach("half", address=None).renewed(0.0)
    assert shards.version == 2 and RayShards.attach("half2", address=None).version == 1
    again.stop()
    shards.stop()


def test_the_head_is_gone() -> None:
    """Queries fail with a remedy, the program outlives what Ray would have ended, and nothing is lost."""
    command = [sys.executable, "-m", "tests.shards.head_gone"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    *before, refused, later, again = told["answers"]
    assert before and set(before) == {"right"} and again == "right" and told["sound"]
    for error in (refused, later):
        assert (
            error.startswith("ShardError")
            and "ray start --head" in error
            and "nothing of them is lost" in error
        )
    assert told["alive after"] > 60
