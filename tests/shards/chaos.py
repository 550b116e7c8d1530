"""Shards on Ray under load, while actors are killed and halted and machines die; every answer is compared.

    python -m tests.shards.chaos --minutes 2

Several Ray machines run on this one (`ray.cluster_utils.Cluster`). Some queries ask for whole answers, others
take what is there in a second: what these have must be the best of just those shards that they name. Prints
counts as JSON; fails if one answer was wrong, or partial without being asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cir_infer.hits import Hits

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

SHARDS, REPLICAS, MACHINES, ITEMS, QUERIES = 3, 2, 3, 3000, 64
DIM, K = 64, 20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two queries of a thread")
    parser.add_argument("--threads", type=int, default=4, help="that want whole answers; one more takes any")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), options)
    print(json.dumps(counts, indent=1))
    return int(any(counts[name] for name in counts if name.startswith(("wrong", "partial", "broken"))))


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster

    from cir_infer import Gallery, VectorSearcher
    from cir_infer.errors import ShardError
    from cir_infer.shards import ShardedGallery, ShardedSearcher
    from cir_infer.shards.layout import shard_of
    from cir_infer.shards.ray import RayShards
    from cir_infer.shards.ray_cluster import NAMESPACE
    from tests.cluster.conftest import processes_below

    numbers = np.random.default_rng(0)
    queries = numbers.standard_normal((QUERIES, DIM))
    with Gallery.create(folder / "one", dimension=DIM) as one:
        one.add_vectors(
            ids=[f"i{n}" for n in range(ITEMS)],
            vectors=numbers.standard_normal((ITEMS, DIM)),
            metadata=[{"number": n} for n in range(ITEMS)],
        )
        ShardedGallery.split(one, folder / "s", SHARDS).close()
        with VectorSearcher(one) as whole:
            right = [[(hit.id, hit.score) for hit in hits] for hits in whole.search_vectors(queries, k=ITEMS)]
    places = {item: shard_of(item, SHARDS) for item, _ in right[0]}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes: list[Any] = []
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    counts: Counter[str] = Counter(wrong=0, partial=0, refused=0)
    slowest = [0.0]

    def started() -> None:
        """Have all machines there; Ray gives one 30 s, which a busy computer may not keep."""
        while len(nodes) < MACHINES:
            try:
                nodes.append(cluster.add_node(num_cpus=2))
            except Exception:
                counts["machine that started too slowly"] += 1

    stop, lock, rng = threading.Event(), threading.Lock(), random.Random(options.seed)
    started()
    began = time.monotonic()
    shards = RayShards.create("chaos", folder / "s", REPLICAS, processors=0.1)
    counts["seconds to the first answer"] = round(time.monotonic() - began)
    for group in shards.groups:  # no machine that dies takes a whole shard
        counts["shards on one machine"] += len({shard.machine(60) for shard in group}) < REPLICAS
    searcher = ShardedSearcher(None, shards.groups, deadline=20)
    sparing = ShardedSearcher(None, shards.groups, deadline=1, partial="allow")

    def asked(of: ShardedSearcher, at: int) -> Hits | None:
        time.sleep(options.pause)
        began = time.monotonic()
        try:
            (hits,) = of.search_vectors(queries[at : at + 1], k=K)
        except ShardError:
            return None
        slowest[0] = max(slowest[0], time.monotonic() - began)
        return hits

    def want_all(hits: Hits | None, at: int) -> dict[str, bool]:
        if hits is None:
            return {"refused": True}
        return {
            "answered": True,
            "partial": hits.coverage != 1.0 or None in hits.generations,
            "wrong": [(hit.id, hit.score) for hit in hits] != right[at][:K],
        }

    def take_parts(hits: Hits | None, at: int) -> dict[str, bool]:
        if hits is None:
            return {"no shard in a second": True}
        there = {number for number, said in enumerate(hits.generations) if said is not None}
        best = [pair for pair in right[at] if places[pair[0]] in there][:K]
        seen = sum(place in there for place in places.values()) / ITEMS
        return {
            "whole in a second": len(there) == SHARDS,
            "said to be partial": len(there) < SHARDS,
            "partial": abs(hits.coverage - seen) > 1e-6,
            "wrong": [(hit.id, hit.score) for hit in hits] != best,
        }

    def load(seed: int, of: ShardedSearcher, judged: Callable[[Hits | None, int], dict[str, bool]]) -> None:
        chosen = random.Random(seed)
        while not stop.is_set():
            at = chosen.randrange(QUERIES)
            try:
                found = judged(asked(of, at), at)
            except Exception as error:
                found = {f"broken: {type(error).__name__}: {error}"[:300]: True}
            with lock:
                counts.update({name: 1 for name, so in found.items() if so})

    workers = [threading.Thread(target=load, args=(n, searcher, want_all)) for n in range(options.threads)]
    workers.append(threading.Thread(target=load, args=(-1, sparing, take_parts)))
    for worker in workers:
        worker.start()
    until = time.monotonic() + 60 * options.minutes
    try:
        while time.monotonic() < until:
            time.sleep(rng.uniform(0.5, 3))
            what = rng.choices(["kill", "halt", "machine that died", "machine that halted"], [6, 3, 1, 1])[0]
            try:
                if what == "machine that died":
                    cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
                    time.sleep(3)
                    started()
                elif what == "machine that halted":
                    raylet = rng.choice(nodes).all_processes["raylet"][0].process.pid
                    halted = [raylet, *processes_below(raylet)]
                    for number in (signal.SIGSTOP, signal.SIGCONT):
                        for pid in halted:
                            with suppress(ProcessLookupError):
                                os.kill(pid, number)
                        time.sleep(rng.uniform(0.2, 4) if number == signal.SIGSTOP else 0)
                else:
                    pid = rng.choice(rng.choice(shards.groups)).pid(5)
                    if what == "kill":
                        os.kill(pid, signal.SIGKILL)
                    else:
                        os.kill(pid, signal.SIGSTOP)
                        time.sleep(rng.uniform(0.2, 4))
                        os.kill(pid, signal.SIGCONT)
            except (ShardError, ProcessLookupError):
                what = "not there to be hurt"
            with lock:
                counts[what] += 1
                said = json.dumps({"minutes": round((time.monotonic() - began) / 60, 1), **counts})
            print(said, file=sys.stderr, flush=True)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        counted = vars(searcher.counts)
        searcher.close()
        sparing.close()
        shards.stop()
        ray.shutdown()
        cluster.shutdown()
        for pid in processes_below():  # of machines that started too slowly
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return {**counts, **counted, "slowest answer, s": round(slowest[0], 2), "minutes": options.minutes}


if __name__ == "__main__":
    sys.exit(main())
