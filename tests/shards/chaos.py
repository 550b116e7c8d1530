"""Shards on Ray under load, while actors are killed and halted and machines die; every answer is compared.

    python -m tests.shards.chaos --minutes 2

Several Ray machines run on this one (`ray.cluster_utils.Cluster`). Prints counts as JSON; fails if one answer
was wrong, or partial without being asked for.
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
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

SHARDS, REPLICAS, ITEMS, QUERIES = 3, 2, 3000, 64
DIM = 64


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), 60 * options.minutes, random.Random(options.seed), options.threads)
    print(json.dumps(counts, indent=1))
    return int(counts.get("wrong", 0) + counts.get("partial", 0) > 0)


def run(folder: Path, seconds: float, rng: random.Random, threads: int) -> dict[str, Any]:
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster

    from cir_infer import Gallery, VectorSearcher
    from cir_infer.errors import ShardError
    from cir_infer.shards import ShardedGallery, ShardedSearcher
    from cir_infer.shards.ray import NAMESPACE, RayShards

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
            right = [[(hit.id, hit.score) for hit in hits] for hits in whole.search_vectors(queries, k=20)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    counts: Counter[str] = Counter()
    slowest = [0.0]
    stop = threading.Event()
    began = time.monotonic()
    shards = RayShards.create("chaos", folder / "s", REPLICAS, processors=0.1)
    counts["seconds to the first answer"] = round(time.monotonic() - began)
    for group in shards.groups:  # no machine that dies takes a whole shard
        counts["shards on one machine"] += len({shard.machine(60) for shard in group}) < REPLICAS
    searcher = ShardedSearcher(None, shards.groups, deadline=20)

    def load(seed: int) -> None:
        chosen = random.Random(seed)
        while not stop.is_set():
            at = chosen.randrange(QUERIES)
            began = time.monotonic()
            try:
                (hits,) = searcher.search_vectors(queries[at : at + 1], k=20)
            except ShardError:
                counts["refused"] += 1
                continue
            slowest[0] = max(slowest[0], time.monotonic() - began)
            counts["answered"] += 1
            counts["partial"] += hits.coverage != 1.0
            counts["wrong"] += [(hit.id, hit.score) for hit in hits] != right[at]

    workers = [threading.Thread(target=load, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            time.sleep(rng.uniform(0.5, 3))
            what = rng.choices(["kill", "halt", "node"], [6, 3, 1])[0]
            try:
                if what == "node":
                    cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
                    time.sleep(3)
                    nodes.append(cluster.add_node(num_cpus=2))
                else:
                    pid = rng.choice(rng.choice(shards.groups)).pid(5)
                    if what == "kill":
                        os.kill(pid, signal.SIGKILL)
                    else:
                        os.kill(pid, signal.SIGSTOP)
                        time.sleep(rng.uniform(0.2, 4))
                        os.kill(pid, signal.SIGCONT)
            except (ShardError, ProcessLookupError):
                counts["not there to be hurt"] += 1
                continue
            counts[f"{what}s"] += 1
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        counted = vars(searcher.counts)
        searcher.close()
        shards.stop()
        ray.shutdown()
        cluster.shutdown()
    return {**counts, **counted, "slowest answer, s": round(slowest[0], 2), "seconds": round(seconds)}


if __name__ == "__main__":
    sys.exit(main())
