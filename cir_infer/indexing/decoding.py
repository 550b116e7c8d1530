"""Decoding in worker processes, a few batches ahead of the encoder.

A worker that dies (an image that brings a decoder down, or the kernel killing it for memory) costs
the image that did it, not the run: its batch is tried again image by image.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import CirError
from cir_infer.indexing.items import Item
from cir_infer.manifest import FeatureInput, PixelInput
from cir_infer.preprocess import preprocess

__all__ = ["Decoded", "Decoders"]

_PATIENCE = 120.0
"""Seconds for one image before its worker is given up."""


class Decoded(NamedTuple):
    """A batch as the image graph takes it.

    Attributes:
        items: those that could be decoded, in order.
        images: uint8 (n, H, W, 3), or float32 (n, F) for a bundle on features.
        failed: the others, each with the reason.
    """

    items: list[Item]
    images: npt.NDArray[Any]
    failed: list[tuple[Item, str]]


class Decoders:
    """A pool of processes that read and prepare images.

    Args:
        spec: the bundle's `image`, which says how.
        workers: processes; 0 decodes in this one.
    """

    def __init__(self, spec: PixelInput | FeatureInput, workers: int) -> None:
        self._spec = spec
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self._stop(kill=kind is not None)

    def batches(self, items: Iterable[Item], size: int) -> Iterator[Decoded]:
        """The items in batches of at most `size`, decoded, in order."""
        remaining = iter(items)
        waiting: deque[tuple[list[Item], Future[_Result] | None]] = deque()
        while True:
            while len(waiting) < 2 * self._workers + 1 and (batch := list(islice(remaining, size))):
                waiting.append((batch, self._submit(batch) if self._workers else None))
            if not waiting:
                return
            batch, future = waiting.popleft()
            try:
                result = (
                    _decode(batch, self._spec) if future is None else future.result(_PATIENCE * len(batch))
                )
            except (BrokenProcessPool, TimeoutError):
                self._stop(kill=True)
                result = self._one_by_one(batch)
                waiting = deque((other, self._submit(other)) for other, _ in waiting)
            yield _decoded(batch, result)

    def _one_by_one(self, batch: Sequence[Item]) -> _Result:
        results = []
        for item in batch:
            try:
                results.append(self._submit([item]).result(_PATIENCE))
            except (BrokenProcessPool, TimeoutError):
                self._stop(kill=True)
                results.append(([None], ["its decoder crashed or hung; leave the image out"]))
        return [array for arrays, _ in results for array in arrays], [
            text for _, texts in results for text in texts
        ]

    def _submit(self, batch: Sequence[Item]) -> Future[_Result]:
        while True:
            if self._pool is None:
                # Spawned, not forked: the encoder's threads do not survive a fork.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._workers, context, initializer=_begin)
            try:
                return self._pool.submit(_decode, batch, self._spec)
            except BrokenProcessPool:
                self._stop(kill=True)

    def _stop(self, kill: bool) -> None:
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        if kill:
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


_Result = tuple[list[npt.NDArray[Any] | None], list[str | None]]


def _begin() -> None:
    # An interrupt is for the parent, which then stops its workers.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode(batch: Sequence[Item], spec: PixelInput | FeatureInput) -> _Result:
    arrays: list[npt.NDArray[Any] | None] = []
    reasons: list[str | None] = []
    for item in batch:
        try:
            if isinstance(spec, FeatureInput):
                arrays.append(preprocess(item.location.path, spec))
            else:
                arrays.append(preprocess(item.location.read(), spec))
            reasons.append(None)
        except CirError as error:
            arrays.append(None)
            reasons.append(str(error))
    return arrays, reasons


def _decoded(batch: Sequence[Item], result: _Result) -> Decoded:
    good = [(item, array) for item, array in zip(batch, result[0], strict=True) if array is not None]
    failed = [(item, text) for item, text in zip(batch, result[1], strict=True) if text is not None]
    images = np.stack([array for _, array in good]) if good else np.empty((0,), np.uint8)
    return Decoded([item for item, _ in good], images, failed)
