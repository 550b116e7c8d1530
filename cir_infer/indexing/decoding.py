"""Decoding in worker processes, a few batches ahead of the encoder.

A worker that dies (an image that brings a decoder down, or the kernel killing it for memory) or
hangs costs the image that did it, not the run: its batch is tried again image by image.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import Manifest
from cir_infer.errors import DeviceError, shown
from cir_infer.indexing.items import Fault, Item
from cir_infer.indexing.worker import Prepared, prepare
from cir_infer.inputs.locations import Location
from cir_infer.inputs.store_asking import longest_read
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.processes.threads import Task, Threads

__all__ = ["CRASHED", "PATIENCE", "Decoded", "Decoders", "patience_for"]

CRASHED = Fault("its decoder crashed or hung; leave the image out")

PATIENCE = 60.0
"""Seconds for one image before its worker is given up."""


class Decoded(NamedTuple):
    """A batch as the image graph takes it.

    Attributes:
        items: those that could be decoded, in order.
        images: uint8 (n, H, W, 3), or float32 (n, F) for a bundle on features.
        failed: the others, each with what is wrong.
        digests: of the bytes of the items.
    """

    items: list[Item]
    images: npt.NDArray[Any]
    failed: list[tuple[Item, Fault]]
    digests: list[str]


def patience_for(items: Sequence[Item], each: float) -> float:
    """Seconds for a batch before its worker is given up.

    Stores are waited for by the worker, which says of one that hangs that it does; given up sooner, it would
    be a decoder that hung, and the image to blame.

    Args:
        items: of the batch.
        each: for one whose bytes are at hand.
    """
    stores = sum(longest_read(item.size or 0) for item in items if item.location.remote)
    return each * len(items) + stores


class Decoders:
    """A pool of processes that read and prepare images.

    Args:
        manifest: of the bundle; says how images are prepared.
        workers: processes; 0 decodes in this one.
    """

    def __init__(self, manifest: Manifest, workers: int) -> None:
        self._manifest = manifest
        self._workers = workers
        # A thread for each process: it sends, waits and receives, and nothing of that holds the GIL.
        self._threads = Threads(max(1, workers))
        self._waiting: deque[Task[Decoded]] = deque()
        self._own = threading.local()
        self._running: list[_Worker] = []
        self._stopping = False

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self._stopping = kind is not None
        if self._stopping:
            for worker in list(self._running):
                worker.kill()
        for task in self._waiting:
            if not task.cancel():
                with suppress(Exception):
                    task.result()
        self._threads.close()
        for worker in self._running:
            worker.close()

    def batches(self, items: Iterable[Item], size: int) -> Iterator[Decoded]:
        """The items in batches of at most `size`, decoded, in order.

        Raises:
            DeviceError: a worker cannot be started.
        """
        remaining = iter(items)
        waiting = self._waiting
        while True:
            while len(waiting) < 2 * self._workers + 1 and (batch := list(islice(remaining, size))):
                waiting.append(self._threads.submit(self._decode, batch))
            if not waiting:
                return
            yield waiting.popleft().result()

    def _decode(self, batch: list[Item]) -> Decoded:
        if not self._workers:
            return _decoded(batch, prepare([item.location for item in batch], self._manifest.image))
        try:
            return _decoded(batch, self._ask(batch))
        except _WorkerDiedError:
            pass
        good: list[npt.NDArray[Any]] = []
        faults: list[Fault | None] = []
        digests: list[str] = []
        for item in batch:
            try:
                one = self._ask([item])
                good += list(one.images)
                faults += one.faults
                digests += one.digests
            except _WorkerDiedError:
                faults.append(CRASHED)
        images = np.stack(good) if good else np.empty(0, np.uint8)
        return _decoded(batch, Prepared(images, faults, digests))

    def _ask(self, items: Sequence[Item]) -> Prepared:
        if self._stopping:
            raise _WorkerDiedError
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _Worker(self._manifest)
            self._running.append(worker)
        try:
            return worker.ask([item.location for item in items], patience_for(items, PATIENCE))
        except _WorkerDiedError:
            self._own.worker = None
            self._running.remove(worker)
            worker.kill()
            worker.close()
            raise


class _WorkerDiedError(Exception):
    """A worker ended, or was ended, before it answered."""


class _Worker:
    """One process of `worker`, for one thread."""

    def __init__(self, manifest: Manifest) -> None:
        self._process = start_child(
            child_command("cir_infer.indexing.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            # An interrupt from the terminal is for the parent alone, from the first moment on.
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stderr is not None
        self._requests = self._process.stdin
        self._answers = cast(io.BufferedReader, self._process.stdout)
        try:
            self._send(json.loads(manifest.to_json()))
            started = self._answers.readline() == b"ready\n"
        except OSError:
            started = False
        with self._process.stderr as voice:
            if started:
                return
            self.kill()
            said = voice.read().decode(errors="replace").strip().rpartition("\n")[2]
        self.close()
        raise DeviceError(
            f"a decoding process (cir_infer.indexing.worker) cannot be started with {sys.executable}"
            f"{f' ({shown(said)})' if said else ''}; decode in this process with --workers 0"
        )

    def ask(self, locations: list[Location], patience: float) -> Prepared:
        """Have images prepared, see `worker.prepare`.

        Args:
            locations: of the images.
            patience: seconds after which the process is ended.

        Raises:
            _WorkerDiedError: the process ended or took too long; it is of no more use.
            DeviceError: there is no thread to watch it.
        """
        timer = threading.Timer(patience, self.kill)
        try:
            timer.start()
        except RuntimeError as error:
            raise DeviceError(
                f"a decoding process is watched by a thread, and there is none ({shown(error)}); raise the "
                "limit of processes (ulimit -u, or the container's), or decode in this one with --workers 0"
            ) from error
        try:
            self._send([[of.path, of.offset, of.size, of.column] for of in locations])
            head = self._answers.readline()
            if not head.endswith(b"\n"):
                raise _WorkerDiedError
            said = json.loads(head)
            images = np.empty(said["shape"], said["dtype"])
            if self._answers.readinto(images.reshape(-1).view(np.uint8).data) != images.nbytes:
                raise _WorkerDiedError
            faults = [None if fault is None else Fault(*fault) for fault in said["faults"]]
            return Prepared(images, faults, said["digests"])
        except OSError as error:
            raise _WorkerDiedError from error
        finally:
            timer.cancel()

    def _send(self, value: Any) -> None:
        self._requests.write(json.dumps(value).encode() + b"\n")
        self._requests.flush()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end by itself, and wait for that."""
        with suppress(OSError):
            self._requests.close()
        self._process.wait()
        self._answers.close()


def _decoded(batch: Sequence[Item], prepared: Prepared) -> Decoded:
    pairs = list(zip(batch, prepared.faults, strict=True))
    return Decoded(
        [item for item, fault in pairs if fault is None],
        prepared.images,
        [(item, fault) for item, fault in pairs if fault is not None],
        prepared.digests,
    )
