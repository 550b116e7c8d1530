"""Workers that are killed at any moment, under load: nothing wrong is answered, no count is lost.

    python -m tests.serving.killed --times 20

starts `cir-serve --workers 2`, asks it as fast as it answers, reads /metrics all the time, and kills a worker
again and again. An answer that comes has to be right; only connections to the one that was killed may break;
/metrics always answers, and no counter goes back.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.serving.support import Client, make_gallery
from tests.serving.test_command import children, command

_SAMPLE = re.compile(r"^(cir_\w+_(?:total|count|sum|bucket)(?:\{.*\})?) (\S+)$", re.MULTILINE)


class Watched:
    """What was seen so far."""

    def __init__(self, client: Client) -> None:
        self.client, self.stop = client, threading.Event()
        self.told, self.faults = Counter[str](), list[str]()
        self.right = self._hits(7)
        self._counts: dict[str, float] = {}

    def _hits(self, item: int) -> object:
        answer = self.client("POST", "/v1/search", {"item": f"sku-{item}", "text": "is red", "k": 5})
        return answer.json["hits"] if answer.status == 200 else answer

    def ask(self) -> None:
        """Until `stop`."""
        while not self.stop.is_set():
            try:
                found = self._hits(7)
            except (OSError, ValueError) as error:  # what asked the worker that was killed
                self.told[type(error).__name__] += 1
                continue
            except Exception as error:
                self.told[type(error).__name__] += 1
                if type(error).__module__ != "http.client":
                    self.faults.append(repr(error))
                continue
            self.told["right" if found == self.right else "wrong"] += 1
            if found != self.right:
                self.faults.append(repr(found)[:300])

    def look(self) -> None:
        """At the metrics, until `stop`."""
        while not self.stop.is_set():
            try:
                answer = self.client("GET", "/metrics")
            except Exception as error:
                self.told[f"metrics: {type(error).__name__}"] += 1
                continue
            self.told[f"metrics: {answer.status}"] += 1
            if answer.status != 200:
                self.faults.append(f"metrics: {answer.body[:300]!r}")
                continue
            counts = {name: float(value) for name, value in _SAMPLE.findall(answer.body.decode())}
            for name, before in self._counts.items():
                if counts.get(name, -1.0) < before:
                    self.faults.append(f"{name} was {before} and is {counts.get(name)}")
            self._counts = counts
            time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        command(make_gallery(Path(folder)), "--workers=2", "--no-access-log") as (client, process),
    ):
        watched = Watched(client)
        asking = [threading.Thread(target=watched.ask) for _ in range(6)]
        asking.append(threading.Thread(target=watched.look))
        for thread in asking:
            thread.start()
        try:
            for number in range(options.times):
                # Those that end early again and again are given up, which is meant.
                time.sleep(10.5 + 2 * chance.random())
                workers = children(process.pid)
                os.kill(chance.choice(workers), signal.SIGKILL)
                print(f"{number + 1}: {dict(watched.told)}", file=sys.stderr, flush=True)
                assert not watched.faults, watched.faults[:3]
            time.sleep(5)
        finally:
            watched.stop.set()
            for thread in asking:
                thread.join()
        assert not watched.faults, watched.faults[:3]
        assert process.poll() is None
        assert client("POST", "/v1/search", {"item": "sku-1", "text": "is red"}).status == 200
        print(f"{options.times} workers killed: {dict(sorted(watched.told.items()))}")


if __name__ == "__main__":
    main()
