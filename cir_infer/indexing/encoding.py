"""From items to rows: who decodes and encodes, seen from an indexing run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.engine import Engine
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.items import Fault, Item

__all__ = ["Encoded", "Encoder", "LocalEncoder"]


class Encoded(NamedTuple):
    """A batch that was encoded.

    Attributes:
        items: those that could be, in order.
        rows: of these, float32 (n, D), or (n, M, D).
        failed: the others, each with what is wrong.
        digests: of the bytes of the items.
        seconds: that the encoder was at work.
    """

    items: list[Item]
    rows: npt.NDArray[np.float32]
    failed: list[tuple[Item, Fault]]
    digests: list[str]
    seconds: float


class Encoder(Protocol):
    """Makes rows of items."""

    def batches(self, items: Iterable[Item], size: int) -> Iterator[Encoded]:
        """The items in batches of at most `size`, encoded, in order; it may run ahead.

        Raises:
            CirError: the device failed.
        """
        ...


class LocalEncoder:
    """Decodes in processes of this machine, encodes in this process.

    Args:
        engine: encodes.
        decoders: decode.
    """

    def __init__(self, engine: Engine, decoders: Decoders) -> None:
        self._engine, self._decoders = engine, decoders

    def batches(self, items: Iterable[Item], size: int) -> Iterator[Encoded]:
        """See `Encoder`."""
        for batch in self._decoders.batches(items, size):
            started = time.perf_counter()
            rows = self._engine.encode_prepared(batch.images) if batch.items else np.empty(0, np.float32)
            seconds = time.perf_counter() - started
            yield Encoded(batch.items, rows, batch.failed, batch.digests, seconds)
