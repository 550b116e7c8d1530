"""A cache that is bounded by what it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from cir_infer.processes.turns import Turn

__all__ = ["ENTRY_BYTES", "BoundedCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ENTRY_BYTES = 512
"""What an entry takes beside its key and its value: the objects that hold them, their places."""


class BoundedCache(Generic[K, V]):
    """The values used last, by key, for any number of threads; every step takes constant time.

    Args:
        limit: bytes that all entries may take together; one that takes more than a quarter is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._held = 0
        self._turn = Turn()  # a lock would stay locked in a forked child, or after an interrupt

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held(self) -> int:
        """Bytes that the entries take, as far as was said when they came."""
        return self._held

    def get(self, key: K) -> V | None:
        """The value of a key, None where it is not (or no longer) here."""
        found = self._entries.get(key)
        if found is None:
            return None
        try:  # noqa: SIM105 - `suppress` takes longer than all else here
            self._entries.move_to_end(key)
        except KeyError:  # it was dropped by now
            pass
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value in the place of an older one.

        Args:
            key: its key.
            value: the value.
            size: bytes that key and value take.
        """
        self.put_all([(key, value, size)])

    def put_all(self, entries: Iterable[tuple[K, V, int]]) -> None:
        """Keep several values, each with its key and size."""
        self._turn.take(self._put_all, entries)

    def _put_all(self, entries: Iterable[tuple[K, V, int]]) -> None:
        most = self._limit // 4 - ENTRY_BYTES
        for key, value, size in entries:
            if key in self._entries:
                self._drop(key)
            if size > most:
                continue
            self._entries[key] = (value, size + ENTRY_BYTES)
            self._held += size + ENTRY_BYTES
        while self._held > self._limit and self._entries:
            # In one call: a thread that looks something up between two changes the order.
            self._held -= self._entries.popitem(last=False)[1][1]
        if not self._entries:
            self._held = 0  # an interrupt may have come between an entry and its count

    def _drop(self, key: K) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._held -= found[1]
