"""Bulk encoding on Ray, killed again and again: writers, encoders, decoders and the command itself.

    python -m tests.cluster.chaos_indexing --kills 50

Fails unless the shards hold, at the end, exactly the rows that `cir-index` makes.
SIGINT means that enough was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

IMAGES, SHARDS = 400, 3
_COMMAND = "import sys; from cir_infer.commands.cluster import main; sys.exit(main(sys.argv[1:]))"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = run(Path(folder), options.kills, random.Random(options.seed))
    print(json.dumps(told, indent=1))
    return int(told["right"] != 1)


def run(folder: Path, kills: int, rng: random.Random) -> dict[str, float]:
    from ray.cluster_utils import Cluster

    from cir_infer import Gallery
    from cir_infer.commands.index import main as index
    from cir_infer.shards import ShardedGallery
    from tests.bundles import write_tiny_bundle
    from tests.cluster.conftest import processes_below
    from tests.cluster.test_indexing import contents

    bundle, photos, shards = write_tiny_bundle(folder / "b.cir"), folder / "photos", folder / "s"
    photos.mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    index([str(bundle), str(photos), "--gallery", str(folder / "one"), "--workers", "0"])
    with Gallery.open(folder / "one", read_only=True) as one:
        right = contents([one])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    counts: Counter[str] = Counter()
    kinds = ("_Writer", "_Engine", "_prepare")
    began = time.monotonic()

    def started() -> subprocess.Popen[bytes]:
        arguments = ["index", str(bundle), str(photos), "--gallery", str(shards), "--shards", str(SHARDS)]
        arguments += ["--batch-size", "1", "--address", cluster.address]
        counts["runs"] += 1
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    enough: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: enough.append(number))
    try:
        running = started()
        while counts["kills"] < kills and not enough:
            if (code := running.poll()) is not None:
                counts["ended by themselves"] += 1
                counts["failed"] += code != 0
                if code != 0 and running.stderr is not None:
                    print(running.stderr.read().decode()[-500:], file=sys.stderr)
                if shards.exists():
                    with ShardedGallery(shards) as gallery:  # there has to be something to do again
                        for shard in gallery.shards:
                            shard.remove(rng.sample(shard.ids, len(shard) // 2))
                running = started()
            time.sleep(rng.uniform(0.02, 1.0))
            working = [
                (pid, kind)
                for pid, title in processes_below().items()
                for kind in kinds
                if title.startswith("ray::") and kind in title
            ]
            if {kind for _, kind in working} >= {"_Writer"}:  # it has begun
                pid, kind = rng.choice(working) if rng.random() < 0.9 else (running.pid, "the command")
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                counts["kills"] += 1
                counts[f"of {kind}"] += 1
                print(
                    f"{counts['kills']} kills, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
                )
                if pid == running.pid:
                    running.wait()
                    running = started()
        running.kill()
        running.wait()
        code = started().wait()
        with ShardedGallery(shards, read_only=True) as gallery:
            same = contents(gallery.shards) == right
            sound = all(shard.verify().ok for shard in gallery.shards)
    finally:
        cluster.shutdown()
    counts["right"] = int(same and sound and code == 0)
    return {**counts, "seconds": round(time.monotonic() - began)}


if __name__ == "__main__":
    sys.exit(main())
