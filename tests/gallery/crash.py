"""Kill a writing process, fail its file operations, cut its power; then look at the gallery.

Run under faults.c (LD_PRELOAD): `python -m tests.gallery.crash faults|kills|power FOLDER ...`.
Prints one JSON object; `violations` must be empty. tests/gallery/test_crash.py starts it.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue.catalogue import OutcomeUnknownError
from cir_infer.gallery.changes import upkeep
from tests.gallery.replay import Disk, read_record
from tests.gallery.support import as_version_1
from tests.gallery.sweep import (
    ACKNOWLEDGED,
    ACTIONS,
    BROKEN,
    REFUSED,
    STICKY,
    UNKNOWN,
    let_each_fail,
    replaced_by,
)

DIM = 8
Items = dict[str, tuple[tuple[float, ...], dict[str, Any]]]


class Faults:
    """The functions that faults.c exports."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.arm = library.faults_arm
        self.arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_long]
        self.count = library.faults_count
        self.count.restype = ctypes.c_long
        self.record = library.faults_record
        self.record.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        self.mark = library.faults_mark
        self.mark.argtypes = [ctypes.c_char_p]

    def disarm(self, folder: Path) -> None:
        self.arm(bytes(folder), 0, 0, 0)


# ---- what is done, and what the gallery then holds


def new_items(seed: int, ids: list[str]) -> Items:
    """Vectors that every row type but int8 holds exactly, so that contents can be compared."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-50, 50, (len(ids), DIM)) + 0.5
    return {
        item: (tuple(row.tolist()), {"seed": seed, "n": number, "text": "x" * int(rng.integers(200))})
        for number, (item, row) in enumerate(zip(ids, rows, strict=True))
    }


PROBE = new_items(1, ["probe"])


def store(gallery: Gallery, items: Items) -> None:
    gallery.add_vectors(
        ids=list(items),
        vectors=np.array([vector for vector, _ in items.values()], np.float32),
        metadata=[data for _, data in items.values()],
        existing="replace",
    )


Step = tuple[Callable[[Gallery], object], Items]
"""An operation and what the gallery holds after it."""


def steps(seed: int, held: Items) -> Iterator[Step]:
    """Endless random changes, the same for the same seed and start."""
    rng = random.Random(seed)
    held = dict(held)
    for number in range(1_000_000):
        kind = rng.choice(["add", "add", "replace", "describe", "remove", "compact"])
        if kind == "add" or (kind != "compact" and len(held) < 3):
            items = new_items(
                seed * 1000 + number, [f"{seed}-{number}-{i}" for i in range(rng.randint(1, 40))]
            )
            held = held | items
            yield (lambda gallery, items=items: store(gallery, items)), held
        elif kind == "replace":
            items = new_items(
                seed * 1000 + number, rng.sample(sorted(held), min(len(held), rng.randint(1, 20)))
            )
            held = {key: value for key, value in held.items() if key not in items} | items
            yield (lambda gallery, items=items: store(gallery, items)), held
        elif kind == "describe":
            told = {item: {"n": number, "told": True} for item in rng.sample(sorted(held), 2)}
            held = held | {item: (held[item][0], data) for item, data in told.items()}
            yield (lambda gallery, told=told: describe(gallery, told)), held
        elif kind == "remove":
            gone = rng.sample(sorted(held), min(len(held), rng.randint(1, 30)))
            held = {key: value for key, value in held.items() if key not in gone}
            yield (lambda gallery, gone=gone: gallery.remove(gone)), held
        else:
            yield (lambda gallery: gallery.compact()), held


def describe(gallery: Gallery, told: dict[str, dict[str, Any]]) -> None:
    gallery.set_metadata(list(told), list(told.values()))


def contents(gallery: Gallery) -> Items:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    vectors = snapshot.rows.take(rows).tolist()
    return {
        item: (tuple(vector), data)
        for item, vector, data in zip(snapshot.ids(rows), vectors, snapshot.metadata(rows), strict=True)
    }


def examine(path: Path, allowed: list[Items]) -> str | None:
    """Open, verify, compare and use a gallery; what is wrong with it, or None."""
    try:
        with Gallery.open(path) as gallery:
            report = gallery.verify()
            if not report.ok:
                return f"verify: {report.problems}"
            found = contents(gallery)
            if found not in allowed:
                sizes = [len(items) for items in allowed]
                return f"holds {len(found)} items, none of the allowed states (of {sizes} items)"
            if gallery.ids != list(found) or gallery.snapshot().matching("n >= 0") != len(found):
                return "ids or filters disagree with the rows"
            late = new_items(2, ["late"])
            store(gallery, late)
            if contents(gallery) != found | late:
                return "a new item did not arrive"
            gallery.remove(["late"])
    except CirError as error:
        return f"{type(error).__name__}: {error}"
    return None


# ---- child processes


def in_child(work: Callable[[int], int]) -> tuple[int, bytes]:
    """Fork, run, and say how it ended (exit code, or minus the signal) and what it wrote to the pipe."""
    return wait(*start(work))


def start(work: Callable[[int], int]) -> tuple[int, int]:
    """Fork and run work(pipe); the child's number and the other end of the pipe."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 99
        try:
            os.close(read)
            code = work(write)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    return child, read


def wait(child: int, read: int) -> tuple[int, bytes]:
    said = b""
    while chunk := os.read(read, 65536):
        said += chunk
    os.close(read)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


# ---- every operation fails once


def scenarios(base: Items) -> dict[str, Step]:
    """One commit of each kind."""
    added = new_items(11, [f"new{i}" for i in range(5)])
    replaced = new_items(12, [*list(base)[3:9], "other"])
    gone = list(base)[2:6]
    told = {item: {"n": number, "told": True} for number, item in enumerate(list(base)[4:12])}
    return {
        "add": (lambda gallery: store(gallery, added), base | added),
        "replace": (
            lambda gallery: store(gallery, replaced),
            {key: value for key, value in base.items() if key not in replaced} | replaced,
        ),
        "describe": (
            lambda gallery: describe(gallery, told),
            base | {item: (base[item][0], data) for item, data in told.items()},
        ),
        "remove": (
            lambda gallery: gallery.remove(gone),
            {key: value for key, value in base.items() if key not in gone},
        ),
        "compact": (lambda gallery: gallery.compact(), base),
    }


def template(folder: Path, count: int = 30) -> Items:
    """A gallery with some history: several segments, removed and replaced items."""
    with Gallery.create(folder, dimension=DIM) as gallery:
        for part in range(3):
            store(gallery, new_items(part, [f"{part}-{i}" for i in range(count // 3)]))
        store(gallery, new_items(4, ["0-1", "1-1"]))
        gallery.remove(["0-2", "2-2"])
        return contents(gallery)


def commit_under_fault(
    faults: Faults,
    place: Path,
    change: Callable[[Gallery], object],
    base: Items,
    fault: tuple[int, int, int],
    pipe: int,
) -> int:
    """In a child: open, change and close, with one fault armed. Says "acknowledged" and the operations."""
    at, what, error = fault
    faults.arm(bytes(place), at, what, error)
    try:
        with Gallery.open(place) as gallery:
            try:
                change(gallery)
            except CirError as error:
                if what != STICKY:
                    known = not isinstance(error, OutcomeUnknownError)
                    os._exit(REFUSED if known else UNKNOWN)  # dies at once, closing nothing
                raise
            os.write(pipe, b"acknowledged")
    except OutcomeUnknownError:
        return UNKNOWN
    except CirError:
        if what != STICKY:
            return REFUSED
        faults.disarm(place)
        with Gallery.open(place) as gallery:
            if contents(gallery) != base:
                return BROKEN
            store(gallery, PROBE)
        return REFUSED
    os.write(pipe, b" %d" % faults.count())
    return ACKNOWLEDGED


def run_faults(folder: Path, names: list[str], actions: list[str], stride: int, old: bool) -> dict[str, Any]:
    """Let each operation of each kind of commit fail in each way; with `old`, those that upgrade format 1."""
    faults = Faults()
    base = template(folder / "template")
    if old:
        as_version_1(folder / "template")
    place = folder / "gallery"
    changes = scenarios(base)

    def attempt(name: str, fault: tuple[int, int, int]) -> tuple[int, bytes]:
        replaced_by(place, folder / "template")
        return in_child(functools.partial(commit_under_fault, faults, place, changes[name][0], base, fault))

    def problem_of(name: str, action: str, outcome: str) -> str | None:
        after = changes[name][1]
        if outcome == "acknowledged":
            return examine(place, [after])
        if outcome == "refused":
            return examine(place, [base | PROBE if ACTIONS[action][0] == STICKY else base])
        return examine(place, [base, after])

    return let_each_fail(names, actions, stride, attempt, problem_of)


# ---- kill -9 at random moments


def change_and_tell(path: Path, plan: Iterator[Step], pipe: int) -> int:
    """In a child: change a gallery without end; b for each change begun, d for each acknowledged."""
    with Gallery.open(path) as gallery:
        for change, _ in plan:
            os.write(pipe, b"b")
            change(gallery)
            os.write(pipe, b"d")
    return 0


def run_kills(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a process that keeps changing one gallery, again and again; it is never rebuilt."""
    rng = random.Random(seed)
    path = folder / "gallery"
    held = template(path)
    violations: list[str] = []
    outcomes: Counter[str] = Counter()
    commits = 0
    for number in range(kills):
        child, read = start(functools.partial(change_and_tell, path, steps(number, held)))
        os.read(read, 1)  # it is about to begin its first change
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        code, said = wait(child, read)
        said = b"b" + said
        if code != -signal.SIGKILL:
            violations.append(f"kill {number}: ended by itself with {code}")
        done = said.count(b"d")
        states = [held]
        plan = steps(number, held)
        for _ in range(done + 1):
            states.append(next(plan)[1])
        open_change = said.endswith(b"b")
        allowed = states[done : done + 2] if open_change else [states[done]]
        commits += done
        problem = examine(path, allowed)
        if problem:
            violations.append(f"kill {number} after {done} changes: {problem}")
            shutil.rmtree(path)
            held = template(path)
            continue
        with Gallery.open(path, read_only=True) as gallery:
            held = contents(gallery)
        outcomes[
            "between changes"
            if not open_change
            else "in a change: it is there"
            if held != states[done]
            else "in a change: it is not"
        ] += 1
        if len(held) > 400:
            with Gallery.open(path) as gallery:
                gallery.remove(list(held)[:300])
                held = contents(gallery)
    return {"kills": kills, "commits": commits, "outcomes": dict(outcomes), "violations": violations}


# ---- power failure


def run_power(folder: Path, changes: int, seed: int, variants: int, stride: int) -> dict[str, Any]:
    """Record every operation of a run, then cut the power behind each: what was not synced is lost."""
    faults = Faults()
    disk_folder = folder / "disk"
    disk_folder.mkdir()
    path = disk_folder / "gallery"
    record = folder / "record"
    # Creating the gallery is recorded too: the disk begins empty.
    states: list[Items | None] = [None, {}]
    plan = steps(seed, {})
    states += [next(plan)[1] for _ in range(changes)]

    def work(pipe: int) -> int:
        faults.record(bytes(disk_folder), bytes(record))
        faults.arm(bytes(disk_folder), 0, 0, 0)
        Gallery.create(path, dimension=DIM).close()
        faults.mark(b"1")
        plan = steps(seed, {})
        for start in range(0, changes, 5):  # and close it now and then, which writes the log back
            with Gallery.open(path) as gallery:
                for number in range(start, min(start + 5, changes)):
                    next(plan)[0](gallery)
                    faults.mark(str(number + 2).encode())
        return 0

    code, _ = in_child(work)
    if code:
        return {"violations": [f"the recorded run ended with {code}"]}
    rng = random.Random(seed)
    disk = Disk(str(disk_folder))
    done, examined = 0, 0
    violations: list[str] = []
    outcomes: Counter[str] = Counter()
    for number, operation in enumerate(read_record(record)):
        if operation.kind == "m":
            done = int(operation.name)
            continue
        disk.apply(operation)
        if number % stride:
            continue
        for variant in ["nothing that was not synced", "everything"] + ["a random part"] * variants:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                target = Path(scratch)
                disk.write_out(target, variant, rng)
                allowed = [state for state in states[done : done + 2] if state is not None]
                examined += 1
                if not (target / "gallery").exists():
                    problem = None if states[done] is None else "the gallery is gone"
                else:
                    problem = examine(target / "gallery", allowed)
                if problem:
                    violations.append(
                        f"power cut behind operation {number} ({operation}), {variant} kept: {problem}"
                    )
                outcomes[f"{variant} kept"] += 1
    return {"operations": number, "examined": examined, "outcomes": dict(outcomes), "violations": violations}


def main() -> None:
    upkeep.MANY, upkeep.LEAST = 4, 0  # so that small commits are merged here, too
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["faults", "kills", "power"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenarios", nargs="+", default=["add", "replace", "describe", "remove", "compact"])
    parser.add_argument("--actions", nargs="+", default=list(ACTIONS))
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--old", action="store_true")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    if options.what == "faults":
        result = run_faults(
            *(getattr(options, n) for n in ("folder", "scenarios", "actions", "stride", "old"))
        )
    elif options.what == "kills":
        result = run_kills(options.folder, options.count, options.seed)
    else:
        result = run_power(options.folder, options.count, options.seed, options.variants, options.stride)
    result["seconds"] = round(time.perf_counter() - started, 1)
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
