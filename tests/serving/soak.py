"""A service at saturation beside a writer: no error, no wrong answer, memory flat.

    python -m tests.serving.soak --minutes 30

`cir-serve --writable` runs in a process of its own. Clients ask as fast as they are answered; a writer puts
and deletes items over HTTP meanwhile. What an item's score is for a query is known beforehand, from a gallery
that holds everything, so each answer is compared with every state that the gallery can have had meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cir_infer import Engine, Gallery, Searcher
from cir_infer.processes.children import child_environment
from tests.serving.support import COUNT, Client, form, make_gallery, png

TOGGLED, QUERIES, K = 40, 30, 12
TEXTS = ("is red", "longer", "is blue and more", "a green square")


class World:
    """What the gallery holds, over time, and what every item is worth to every query."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.lock = threading.Lock()
        self.queries = [(png(1000 + n), TEXTS[n % len(TEXTS)]) for n in range(QUERIES)]
        self.toggled = {f"new-{n}": png(500 + n) for n in range(TOGGLED)}
        with Gallery.open(bundle.with_suffix(".gallery"), read_only=True) as gallery:
            snapshot = gallery.snapshot()
            self.fixed = snapshot.ids(snapshot.live_rows())
            vectors = [snapshot.vector(int(row)) for row in snapshot.live_rows()]
        with Engine(bundle, device="cpu", threads=1) as engine:
            vectors += list(engine.encode_images(list(self.toggled.values())))
            ids = [*self.fixed, *self.toggled]
            with (
                Gallery.from_arrays(
                    folder / "all.gallery", ids=ids, vectors=vectors, engine=engine, dtype="float32"
                ) as whole,
                Searcher(engine, whole) as searcher,
            ):
                self.worth = [
                    {hit.id: hit.score for hit in searcher.query(image, text, len(ids))}
                    for image, text in self.queries
                ]
        # Each state, when it may have begun, and when it had surely ended.
        self.states: list[tuple[frozenset[str], float, float]] = [(frozenset(self.fixed), 0.0, float("inf"))]

    def wrong(self, number: int, hits: list[Any], asked: float, answered: float) -> str | None:
        """Why an answer fits no state of its time, None where it fits one."""
        with self.lock:
            possible = [state for state, begun, ended in self.states if begun <= answered and ended >= asked]
        worth = self.worth[number]
        for held in possible:
            if all(hit["id"] in held for hit in hits):
                best = sorted((worth[item] for item in held), reverse=True)[:K]
                scores = [hit["score"] for hit in hits]
                close = len(best) == len(scores) and all(
                    abs(one - other) < 1e-4 for one, other in zip(best, scores, strict=True)
                )
                if close and all(abs(worth[hit["id"]] - hit["score"]) < 1e-4 for hit in hits):
                    return None
        told = [(hit["id"], hit["score"]) for hit in hits]
        return f"query {number}: {told} fits none of {len(possible)} states"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_gallery(Path(folder))
        world = World(bundle, Path(folder))
        program = "import sys; from cir_infer.commands.serve import main; sys.exit(main())"
        flags = ["--port=0", "--json", "--threads=1", "--device=cpu", "--writable", "--no-access-log"]
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(bundle), *flags],
            env=child_environment(),
            text=True,
            stdout=subprocess.PIPE,
        )
        try:
            said = ""
            assert process.stdout is not None
            while not said.rstrip().endswith("}"):
                said += process.stdout.readline() or sys.exit("cir-serve did not begin")
            client = Client(int(json.loads(said)["address"].rpartition(":")[2]))
            _run(world, client, process.pid, 60 * options.minutes, options.clients)
        finally:
            process.terminate()
            process.wait(60)


def _run(world: World, client: Client, process: int, seconds: float, clients: int) -> None:
    end, faults, counts = time.monotonic() + seconds, [], {"answers": 0, "changes": 0, "refused": 0}
    lock = threading.Lock()

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end and not faults:
            number = chance.randrange(QUERIES)
            image, text = world.queries[number]
            body, kind = form([("text", text), ("k", str(K))], image)
            asked = time.monotonic()
            answer = client("POST", "/v1/search", body, Content_Type=kind)
            answered = time.monotonic()
            if answer.status == 503:  # the machine is busy with others: it says so, and when to come again
                with lock:
                    counts["refused"] += 1
                time.sleep(float(answer.headers["retry-after"]))
                continue
            fault = f"{answer.status} {answer.body[:300]!r}" if answer.status != 200 else None
            # A state ends when its successor was answered, which may be told a moment after it showed.
            fault = fault or world.wrong(number, answer.json["hits"], asked, answered)
            with lock:
                counts["answers"] += 1
                if fault:
                    faults.append(fault)

    def write() -> None:
        chance, held = random.Random(0), set(world.fixed)
        while time.monotonic() < end and not faults:
            item = chance.choice(list(world.toggled))
            after = held ^ {item}
            asked = time.monotonic()
            with world.lock:  # from now on the next state may be seen
                world.states.append((frozenset(after), asked, float("inf")))
            if item in held:
                answer = client("DELETE", f"/v1/items/{item}")
            else:
                answer = client("PUT", f"/v1/items/{item}", world.toggled[item], Content_Type="image/png")
            answered = time.monotonic()
            with world.lock:
                state, begun, _ = world.states[-2]
                world.states[-2] = (state, begun, answered)
                del world.states[:-2000]
            if answer.status not in (200, 201, 204):
                faults.append(f"a change: {answer.status} {answer.body[:300]!r}")
            held, counts["changes"] = after, counts["changes"] + 1

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(clients)]
    threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    memory: list[float] = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(5.0, seconds / 20))
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
        memory.append(int(found[1]) / 1024 if found else 0.0)
        if len(memory) % 12 == 0:
            print(f"{counts}, {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)
    third = max(1, len(memory) // 3)
    parts = [max(memory[at : at + third], default=0.0) for at in (third, 2 * third)]
    assert not faults, faults[0]
    print(
        f"{counts['answers']:,} answers, each right, {counts['refused']:,} refused with 503, "
        f"{counts['changes']:,} changes; anonymous memory "
        f"{parts[0]:.1f} MiB in the second third, {parts[1]:.1f} in the last; {COUNT} items that stay"
    )


if __name__ == "__main__":
    main()
