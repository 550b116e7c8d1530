"""A gallery as a service has it for years, in minutes: everything at once, held against brute force.

    python -m tests.gallery.soak --minutes 30 --threads 32

Reader threads take snapshots and ask filtered top-k queries. Beside them one thread changes the gallery
and is interrupted at random, one forks children that read and write, one makes backups and opens them, one
exchanges the whole folder for another gallery (by renaming it, by turning a link), one opens the gallery in
another process, and one copies its files as a careless program does. Every answer is compared with the
states that the gallery can be in at that moment. Prints one JSON object; `violations` must be empty.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.errors import CirError, GalleryError
from cir_infer.gallery import Gallery, Snapshot
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms
from tests.gallery.interrupts import Interrupt
from tests.gallery.live import ITEMS, Model, Service
from tests.gallery.load import DIM, State, anonymous_memory, metadata, vector

K = 10


def check_items(snapshot: Snapshot, rows: Any) -> dict[str, int]:
    """Ids and versions of rows; that id, metadata and vector are of one version is checked on the way."""
    found = {}
    stored = snapshot.rows.take(rows)
    for item, row in zip(snapshot.items(rows), stored, strict=True):
        version = item.metadata["version"]
        assert item.metadata == metadata(item.id, version), f"metadata of {item.id} is {item.metadata}"
        np.testing.assert_array_equal(row, vector(item.id, version), err_msg=item.id)
        found[item.id] = version
    return found


def check_query(snapshot: Snapshot, rng: random.Random) -> dict[str, int]:
    """The scorer's answer to one query is that of brute force over everything that is there."""
    held = check_items(snapshot, snapshot.live_rows())
    third = rng.randrange(3)
    where = rng.choice([None, {"third": third}, f"third = {third} and tags = all", "version < 0"])
    allowed = [
        name for name in held if where is None or (where != "version < 0" and int(name[1:]) % 3 == third)
    ]
    assert snapshot.matching(where) == len(allowed), "the count of a filter is not exact"
    goal = np.random.default_rng(rng.getrandbits(32)).normal(size=DIM).astype(np.float32)
    terms = QueryTerms(goal[None, None], np.ones((1, 1, DIM), np.float32), ("likeness",))
    top = make_scorer(snapshot.rows, "cpu", 1).topk(terms, K, snapshot.where(where))
    rows = top.rows[0][top.rows[0] >= 0]
    names = snapshot.ids(rows)
    vectors = {name: vector(name, held[name]).astype(np.float64) for name in allowed}
    scores = {name: float(goal @ row / np.sqrt(row @ row)) for name, row in vectors.items()}
    best = sorted(scores.values(), reverse=True)[:K]
    assert set(names) <= set(allowed), "a hit that the filter excludes"
    np.testing.assert_allclose([scores[name] for name in names], best, rtol=1e-5)
    return held


class Soak:
    def __init__(self, folder: Path, threads: int, seed: int) -> None:
        self.service = Service(folder)
        self.stop = threading.Event()
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self._writer: int | None = None
        jobs: list[Callable[[random.Random], None]] = [self._read] * threads
        jobs += [self._write, self._interrupt, self._fork, self._back_up, self._exchange]
        jobs += [self._visit, self._copy_carelessly]
        self.threads = [
            threading.Thread(target=self._run, args=(job, random.Random(seed * 1000 + number)), daemon=True)
            for number, job in enumerate(jobs)
        ]

    def run(self, seconds: float) -> dict[str, Any]:
        for thread in self.threads:
            thread.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.violations:
            time.sleep(min(1.0, seconds / 20))
            self.memory.append(anonymous_memory())
            self.descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
            if thread.is_alive():
                self.violations.append(f"{thread.name} does not end")
        with self.service.opened() as (gallery, model):
            if check_items(gallery.snapshot(), gallery.snapshot().live_rows()) != model.states[-1]:
                self.violations.append("in the end it does not hold what was acknowledged")
            self.violations += gallery.verify().problems
        third = max(1, len(self.memory) // 3)
        early, late = (
            sorted(part)[len(part) // 2]
            for part in (self.memory[third : 2 * third + 1], self.memory[-third:])
        )
        return {
            "counts": dict(self.counts),
            "anonymous_mib": [round(early / 2**20, 1), round(late / 2**20, 1)],
            "descriptors": [
                sorted(self.descriptors[third : 2 * third + 1])[third // 2],
                sorted(self.descriptors[-third:])[third // 2],
                max(self.descriptors),
            ],
            "violations": self.violations,
        }

    def _run(self, job: Callable[[random.Random], None], rng: random.Random) -> None:
        while not self.stop.is_set():
            try:
                job(rng)
            except Interrupt:  # it came when the call was over
                continue
            except BaseException:
                self.violations.append(f"{job.__name__}: {traceback.format_exc()}")
                return

    def _read(self, rng: random.Random) -> None:
        """Query until the gallery is exchanged; then open what is there now."""
        try:
            with self.service.opened(read_only=True) as (gallery, model):
                while not self.stop.is_set():
                    oldest = model.acknowledged
                    snapshot = gallery.snapshot()
                    newest = model.begun
                    possible = model.states[oldest : newest + 1]
                    try:
                        held = check_query(snapshot, rng)
                    except GalleryError:
                        gallery.snapshot()  # tells that it is another; if it is not, that was a violation
                        raise AssertionError(traceback.format_exc()) from None
                    assert held in possible, "the snapshot is no state that the gallery was in"
                    self.counts["queries"] += 1
                    time.sleep(rng.random() * 0.05)
        except GalleryError as error:
            self._expect_another(error)

    def _expect_another(self, error: GalleryError) -> None:
        """An error is right where the gallery was exchanged, and says so."""
        text = str(error)
        assert any(words in text for words in ("open it again", "found nothing", "not a gallery")), text
        self.counts["refused: another gallery"] += 1

    def _write(self, rng: random.Random) -> None:
        try:
            with self.service.opened(wait=60) as (gallery, model):
                while not self.stop.is_set():
                    with model.turn:
                        self._change(gallery, model, rng)
                    time.sleep(rng.random() * 0.05)
        except GalleryError as error:
            self._expect_another(error)

    def _change(self, gallery: Gallery, model: Model, rng: random.Random) -> None:
        held = model.states[-1]
        kind = rng.choice(["store", "store", "remove", "compact"])
        model.version += 1
        if kind == "store":
            names = rng.sample(ITEMS, 15)
            after = {
                **{k: v for k, v in held.items() if k not in names},
                **dict.fromkeys(names, model.version),
            }
            arguments = model.items(names)
            work: Callable[[], object] = lambda: gallery.add_vectors(**arguments)  # noqa: E731
        elif kind == "remove" and len(held) > 40:
            gone = rng.sample(sorted(held), 10)
            after = {k: v for k, v in held.items() if k not in gone}
            work = lambda: gallery.remove(gone)  # noqa: E731
        else:
            after, work = dict(held), gallery.compact
        model.begin(after)
        done = False
        try:
            self._writer = threading.get_ident()
            try:
                work()
                done = True
            finally:
                self._writer = None
        except Interrupt as error:
            told = bool(getattr(error, "durable", False))
            done = self._holds(model, after, held, told)
            self.counts[f"interrupted, {'durable' if told else 'not told durable'}"] += 1
            raise
        finally:
            if done:
                model.acknowledge()
            else:
                model.take_back()
        self.counts[kind] += 1

    def _holds(self, model: Model, after: State, before: State, told: bool) -> bool:
        """Whether a change that was interrupted is there; what is told to be durable has to be."""
        if after == before:
            return True
        try:
            with Gallery.open(model.folder, read_only=True) as gallery:
                snapshot = gallery.snapshot()
                held = check_items(snapshot, snapshot.live_rows())
        except CirError:  # exchanged and removed meanwhile
            return told
        assert held in (before, after), "an interrupted change is there in part"
        assert not told or held == after, "a change that was told to be durable is not there"
        return held == after

    def _interrupt(self, rng: random.Random) -> None:
        time.sleep(rng.random() * 2)
        writer = self._writer
        if writer is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(writer), ctypes.py_object(Interrupt))

    def _fork(self, rng: random.Random) -> None:
        """A child that inherits an open gallery reads it, and commits."""
        time.sleep(rng.random() * 2)
        try:
            with self.service.opened(wait=60) as (gallery, model), model.turn:
                gallery.snapshot()
                names = rng.sample(ITEMS, 5)
                model.version += 1
                held = model.states[-1]
                model.begin(
                    {
                        **{k: v for k, v in held.items() if k not in names},
                        **dict.fromkeys(names, model.version),
                    }
                )
                code, said = _in_child(lambda: _use(gallery, model, names, rng))
                if code == 0:
                    model.acknowledge()
                    self.counts["children that committed"] += 1
                else:
                    model.take_back()
                    assert code == 3, f"a child ended with {code}: {said}"
                    self.counts["children that were refused"] += 1
        except GalleryError as error:
            self._expect_another(error)

    def _back_up(self, rng: random.Random) -> None:
        time.sleep(rng.random() * 2)
        copy = self.service.home / f"backup{rng.randrange(2)}"
        try:
            with self.service.opened(read_only=True) as (gallery, model):
                if not hasattr(gallery, "backup"):
                    return
                if copy.exists() and rng.random() < 0.3:
                    shutil.rmtree(copy)
                oldest = model.acknowledged
                try:
                    gallery.backup(copy)
                except GalleryError:
                    gallery.snapshot()
                    shutil.rmtree(copy, ignore_errors=True)  # a backup of the gallery before
                    return
                possible = model.states[oldest : model.begun + 1]
        except GalleryError as error:
            self._expect_another(error)
            return
        with Gallery.open(copy) as backup:
            snapshot = backup.snapshot()
            assert check_items(snapshot, snapshot.live_rows()) in possible, (
                "a backup is no state of its gallery"
            )
            assert backup.verify().ok
        self.counts["backups"] += 1

    def _exchange(self, rng: random.Random) -> None:
        self.stop.wait(4 + rng.random() * 4)
        if not self.stop.is_set():
            self.service.exchange(rng)
            self.counts["exchanges"] += 1

    def _visit(self, rng: random.Random) -> None:
        """Another process opens the gallery and closes it: it must not take itself for the last one."""
        self.stop.wait(rng.random() * 4)
        code = "import sys; from cir_infer.gallery import Gallery; print(len(Gallery.open(sys.argv[1])))"
        result = subprocess.run(
            [sys.executable, "-c", code, str(self.service.shop)], capture_output=True, text=True
        )
        if result.returncode:
            last = result.stderr.strip().splitlines()[-1]
            assert "GalleryError" in last, result.stderr
            self._expect_another(GalleryError(last))
        self.counts["other processes"] += 1

    def _copy_carelessly(self, rng: random.Random) -> None:
        time.sleep(rng.random() * 2)
        for name in ("catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm"):
            try:
                (self.service.shop / name).read_bytes()
            except OSError:
                continue
        self.counts["careless copies"] += 1


def _in_child(work: Callable[[], int]) -> tuple[int, str]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 99
        try:
            os.close(read)
            code = work()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(write)
    said = b""
    while chunk := os.read(read, 4096):
        said += chunk
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode()


def _use(gallery: Gallery, model: Model, names: list[str], rng: random.Random) -> int:
    try:
        assert check_query(gallery.snapshot(), rng) == model.states[-2]
        gallery.add_vectors(**model.items(names))
        assert check_query(gallery.snapshot(), rng) == model.states[-1]
    except GalleryError as error:
        if any(words in str(error) for words in ("open it again", "was forked while")):
            return 3
        raise
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.unraisablehook = lambda _: None  # an interrupt that comes in a finalizer is printed otherwise
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cir-soak-") as folder:
        result = Soak(Path(folder), options.threads, options.seed).run(60 * options.minutes)
    result["seconds"] = round(time.monotonic() - started, 1)
    json.dump(result, sys.stdout, indent=1)
    print()
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
