"""Decoding as tasks and encoding on a pool of actors of Ray, for whoever writes a shard."""

from __future__ import annotations

import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import CirError, DeviceError, shown
from cir_infer.indexing.decoding import CRASHED, PATIENCE, patience_for
from cir_infer.indexing.encoding import Encoded
from cir_infer.indexing.items import Fault, Item
from cir_infer.indexing.worker import prepare
from cir_infer.inputs.locations import Location
from cir_infer.shards.ray_cluster import cause_of

__all__ = ["EngineOptions", "Pool", "RayEncoder", "StoppedError", "start_engine"]

_LOOK = 1.0


class StoppedError(CirError):
    """Somebody asked a run to end."""


class EngineOptions(NamedTuple):
    """How an engine is opened; see `Engine`."""

    bundle: str
    device: str
    threads: int | None
    exif_orientation: bool | None

    def opened(self) -> Any:
        """The engine.

        Raises:
            CirError: see `Engine`.
        """
        from cir_infer.bundle import Bundle
        from cir_infer.engine import Engine

        return Engine(Bundle(self.bundle), self.device, self.threads, exif_orientation=self.exif_orientation)


class _Engine:
    """What runs in an actor: an engine, opened once more whenever Ray starts it again."""

    def __init__(self, options: EngineOptions) -> None:
        self._engine = options.opened()

    def ready(self) -> None: ...

    def encode(self, images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], float]:
        started = time.perf_counter()
        rows = self._engine.encode_prepared(images) if len(images) else np.empty(0, np.float32)
        return rows, time.perf_counter() - started


class Pool(NamedTuple):
    """Engines to encode with.

    Attributes:
        engines: handles of actors.
        spec: how images are prepared, in Ray's object store.
    """

    engines: list[Any]
    spec: Any


def start_engine(options: EngineOptions, processors: float, gpus: float) -> Any:
    """An engine as an actor, which Ray starts again when it dies, with what it was asked meanwhile."""
    import ray

    return (
        ray.remote(_Engine)
        .options(
            max_restarts=-1,
            max_task_retries=-1,  # encoding changes nothing, so it may be done twice
            num_cpus=processors,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
        )
        .remote(options)
    )


def _prepare(
    locations: list[Location], spec: Any, patience: float
) -> tuple[Any, tuple[list[Fault | None], list[str]]]:
    # Ends the process, since no exception reaches a decoder that hangs.
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        done = prepare(locations, spec)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return done.images, (done.faults, done.digests)


class RayEncoder:
    """Has items decoded and encoded, a few batches ahead; an `Encoder`.

    An image that brings its decoder down costs itself: its batch is tried again image by image.

    Args:
        pool: the engines.
        ahead: batches in work at the same time.
        stopping: whether to end; looked at every second.
        patience: seconds of work on one image before it is given up, see `patience_for`; waiting for a
            processor is none.
    """

    def __init__(
        self, pool: Pool, ahead: int, stopping: Callable[[], bool], patience: float = PATIENCE
    ) -> None:
        import ray

        self._ray, self._pool, self._ahead, self._stopping = ray, pool, ahead, stopping
        self._patience = patience
        self._task = ray.remote(_prepare).options(num_returns=2, max_retries=1)
        self._turns = itertools.cycle(pool.engines)

    def batches(self, items: Iterable[Item], size: int) -> Iterator[Encoded]:
        """See `Encoder`.

        Raises:
            StoppedError: somebody wants it to end.
        """
        remaining = iter(items)
        waiting: deque[tuple[list[Item], Any, Any]] = deque()
        while True:
            while len(waiting) < self._ahead and (batch := list(islice(remaining, size))):
                waiting.append((batch, *self._begun(batch)))
            if not waiting:
                return
            yield self._ended(*waiting.popleft())

    def _begun(self, batch: Sequence[Item]) -> tuple[Any, Any]:
        """What is said of a batch's images, and their rows, both to come."""
        places = [item.location for item in batch]
        patience = patience_for(batch, self._patience)
        images, said = self._task.remote(places, self._pool.spec, patience)
        return said, next(self._turns).encode.remote(images)

    def _came(self, reference: Any) -> Any:
        """What a call has brought, however long it waits for its turn."""
        while not self._stopping():
            if self._ray.wait([reference], timeout=_LOOK)[0]:
                return self._ray.get(reference)
        raise StoppedError("stopped")

    def _ended(self, batch: list[Item], said: Any, rows: Any) -> Encoded:
        from ray.exceptions import RayError

        try:
            faults, digests = self._came(said)
        except RayError as error:
            if (cause := cause_of(error)) is not None:
                raise cause from error
            if len(batch) == 1:
                return Encoded([], np.empty(0, np.float32), [(batch[0], CRASHED)], [], 0.0)
            return self._one_by_one(batch)
        try:
            encoded, seconds = self._came(rows)
        except RayError as error:
            raise cause_of(error) or DeviceError(f"an encoder failed: {shown(error, 300)}") from error
        pairs = list(zip(batch, faults, strict=True))
        good = [item for item, fault in pairs if fault is None]
        failed = [(item, fault) for item, fault in pairs if fault is not None]
        return Encoded(good, encoded, failed, digests, seconds)

    def _one_by_one(self, batch: list[Item]) -> Encoded:
        parts = [self._ended([item], *self._begun([item])) for item in batch]
        rows = [part.rows for part in parts if part.items]
        return Encoded(
            [item for part in parts for item in part.items],
            np.concatenate(rows) if rows else np.empty(0, np.float32),
            [pair for part in parts for pair in part.failed],
            [digest for part in parts for digest in part.digests],
            sum(part.seconds for part in parts),
        )
