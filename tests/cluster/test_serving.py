"""A sharded gallery on a real Ray Serve: the routes of `cir-serve`, deaths, other shards under queries."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.cluster.serving import shards_of, tag_of
from cir_infer.commands.cluster import main
from cir_infer.commands.index import main as index_main
from cir_infer.shards import ShardedGallery
from cir_infer.shards.listing import Listing
from tests.cluster.conftest import processes_below
from tests.ports import held_port
from tests.serving.support import Client

LOCAL = ["--address", "local"]


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as held:
        yield held


def told(hits: Any) -> list[tuple[str, float]]:
    return sorted((hit["id"], hit["score"]) for hit in hits)


def kill(title: str) -> int:
    """Kill one process of ours that is called so."""
    for pid, name in processes_below().items():
        if name.startswith(f"ray::{title}"):
            os.kill(pid, signal.SIGKILL)
            return pid
    return 0


def test_a_service_ends_its_own_shards_alone() -> None:
    listings = [Listing(None, 4, 1, (name,)) for name in ("0000.gallery", "s2-0000.gallery")]
    tags = [tag_of(listing) for listing in listings]
    mine = [f"shop-shards-{tag}" for tag in tags]
    others = ["shop", "shop-shards", f"shop-shards-shards-{tags[0]}", f"my-shop-shards-{tags[0]}"]
    assert shards_of([*others, *mine], "shop") == mine
    assert shards_of([*others, *mine], "shop-shards") == others[2:3]


@pytest.mark.ray
def test_a_service(
    ray: Any,
    tmp_path: Path,
    bundle: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    port: int,
) -> None:
    pytest.importorskip("aiohttp", reason="Ray Serve is not installed: pip install 'cir-infer[ray-serve]'")
    from ray import serve

    folder = tmp_path / "s"
    index_main([str(bundle), str(photos), "--gallery", str(tmp_path / "one"), "--workers", "0"])
    with Gallery.open(tmp_path / "one") as one:
        ShardedGallery.split(one, folder, 2).close()
    place = photos / "part0" / "0.png"
    with Engine(bundle) as engine, Searcher(engine, str(tmp_path / "one")) as searcher:
        right = sorted((hit.id, hit.score) for hit in searcher.query(place, "is red", k=60))
    client = Client(port)
    query = {"image": base64.b64encode(place.read_bytes()).decode(), "text": "is red", "k": 60}
    statuses: Counter[Any] = Counter()
    wrong: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = client.search(**query)
            except OSError:  # the proxy is being started again
                statuses["no connection"] += 1
                time.sleep(0.1)
                continue
            statuses[answer.status] += 1
            if answer.status == 200 and told(answer.json["hits"]) != right:
                wrong.append(answer.json)

    def until_answered(more: int) -> None:
        """Wait until so many more answers have come."""
        wanted = statuses[200] + more
        while statuses[200] < wanted:
            time.sleep(0.05)

    thread = threading.Thread(target=ask)
    monkeypatch.chdir(tmp_path)  # the replicas run elsewhere, and the paths are meant from here
    here = os.path.relpath(bundle)
    try:
        command = ["serve", "shop", "s", "--bundle", here, "--port", str(port), *LOCAL]
        assert main(command) == 0
        assert told(client.search(**query).json["hits"]) == right
        assert client("GET", "/v1/items/part0%2F0.png").status == 200
        assert client("GET", "/v1/info").json["gallery"]["items"] == 58
        assert client.search(text="is red", k=1000).kind == "invalid-argument"
        thread.start()
        until_answered(3)
        assert kill("ServeController")
        until_answered(3)
        assert kill("ServeReplica:shop-shards")
        until_answered(3)
        listed = (folder / "shards.json").read_bytes()
        assert main(["rebalance", "s", "--into", "3", "--service", "nobody", *LOCAL]) == 1
        assert "no shards of 'nobody' run" in capsys.readouterr().err
        with ShardedGallery(folder, read_only=True) as gallery:
            ShardedGallery.split(gallery, tmp_path / "other", 2).close()
        assert main(["rebalance", "other", "--into", "3", "--service", "shop", *LOCAL]) == 2
        assert "'shop' asks the shards of" in capsys.readouterr().err
        for place in (folder, tmp_path / "other"):
            assert (place / "shards.json").read_bytes() == listed  # it is asked before anything is changed
        switch = ["--service", "shop", "--grace", "5", "--json", *LOCAL]
        assert main(["rebalance", "s", "--into", "3", *switch]) == 0
        assert len(json.loads(capsys.readouterr().out)["ended"]) == 1
        until_answered(3)
        assert kill("ServeReplica:shop:queries")
        until_answered(3)
        assert len([name for name in serve.status().applications if "shards" in name]) == 1
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()
        main(["unserve", "shop", *LOCAL])
        serve.shutdown()
    assert not wrong, statuses
    assert set(statuses) <= {200, 500, 502, 503, 504, "no connection"}
    assert main(["unserve", "shop", *LOCAL]) == 1
