"""Shards that do what a test wants of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cir_infer.errors import ShardError
from cir_infer.shards import About, Found, Held, LocalShard


def started_ray() -> Any:
    """A Ray of this process's own. Ray gives itself 30 s to start, which a busy machine may not keep."""
    from cir_infer.shards.ray import connect

    for _ in range(9):
        with suppress(ShardError):
            return connect()
    return connect()


class Odd:
    """A shard before which something happens; `before` gets the number of the call, from 0."""

    def __init__(self, shard: LocalShard, before: Callable[[int], None]) -> None:
        self._shard, self._before = shard, before
        self._lock = threading.Lock()
        self.calls = 0
        self.place = f"{shard.place} (odd)"

    def about(self, timeout: float | None = None) -> About:
        return self._shard.about(timeout)

    def search(self, *asked: Any) -> Found:
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
        self._before(number)
        return self._shard.search(*asked)

    def held(self, item: str, timeout: float | None = None) -> Held | None:
        return self._shard.held(item, timeout)

    def close(self) -> None:
        self._shard.close()
