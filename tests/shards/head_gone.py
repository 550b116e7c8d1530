"""A Ray cluster whose head dies under a program that asks its actors, and what becomes of the program.

    python -m tests.shards.head_gone

Prints JSON: what was answered, in order, and how long the head had been gone. The program asks line by line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

_RAY_WAITS = 60.0
"""Seconds after which Ray ends the processes of a cluster without a head."""


def program(address: str, folder: str) -> None:
    """Answers each line of its input by one of its output; a line is the next cluster's address, or empty.

    It asks by one searcher from its beginning to its end, which follows.
    """
    from cir_infer.errors import CirError
    from cir_infer.shards.ray import RayShards, follow
    from tests.gallery.support import vectors

    def begin(where: str) -> None:
        os.environ["RAY_ADDRESS"] = where
        RayShards.create("shop", folder, address=where, processors=0.1)

    begin(address)
    searcher = follow("shop", every=0, deadline=10)
    for line in sys.stdin:
        try:
            if line.strip():
                begin(line.strip())
            (hits,) = searcher.search_vectors(vectors(1), k=5)
            told: Any = [[hit.id, hit.score] for hit in hits]
        except CirError as error:
            told = f"{type(error).__name__}: {error}"
        print(json.dumps(told), flush=True)


def main() -> int:
    from ray.cluster_utils import Cluster

    from cir_infer import VectorSearcher
    from cir_infer.shards import ShardedGallery
    from tests.cluster.conftest import processes_below
    from tests.gallery.support import filled, vectors

    def cluster() -> Any:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})

    told: dict[str, Any] = {"answers": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with filled(folder / "g", 40) as one, VectorSearcher(one) as whole:
            ShardedGallery.split(one, folder / "s", 2).close()
            (hits,) = whole.search_vectors(vectors(1), k=5)
            right = [[hit.id, hit.score] for hit in hits]
        first = cluster()
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.shards.head_gone", first.address, str(folder / "s")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None and child.stdout is not None

        def ask(line: str = "") -> Any:
            assert child.stdin is not None and child.stdout is not None
            print(line, file=child.stdin, flush=True)
            found = json.loads(child.stdout.readline())
            told["answers"].append("right" if found == right else found)
            return told["answers"][-1]

        try:
            ask()
            gone = time.monotonic()
            first.head_node.kill_gcs_server()
            while ask() == "right":
                time.sleep(1)
            told["seconds to the first refusal"] = round(time.monotonic() - gone)
            for process in first.head_node.all_processes["raylet"]:
                process.process.kill()
            while time.monotonic() < gone + _RAY_WAITS + 20:
                time.sleep(1)
            ask()
            ask(cluster().address)
            told["alive after"] = round(time.monotonic() - gone)
            with ShardedGallery(folder / "s") as gallery:
                told["sound"] = all(shard.verify().ok for shard in gallery.shards)
        finally:
            child.kill()
            child.wait()
            for pid in processes_below():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        program(*sys.argv[1:])
        sys.exit()
    sys.exit(main())
