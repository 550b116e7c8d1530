"""The cache that threads share: what it holds, what goes, and looks into it between any two steps."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from cir_infer.processes.cache import ENTRY_BYTES, BoundedCache


def test_what_was_used_longest_ago_goes() -> None:
    cache: BoundedCache[int, str] = BoundedCache(8 * ENTRY_BYTES)
    cache.put_all((key, str(key), 0) for key in range(8))
    assert cache.get(0) == "0"
    cache.put(8, "8", 0)
    assert [key for key in range(9) if cache.get(key) is not None] == [0, 2, 3, 4, 5, 6, 7, 8]
    assert cache.held == 8 * ENTRY_BYTES
    cache.put(8, "too large", 8 * ENTRY_BYTES)  # nor is the older one the value any more
    assert cache.get(8) is None
    assert (len(cache), cache.held) == (7, 7 * ENTRY_BYTES)


def test_a_look_between_any_two_steps_of_a_change_costs_neither() -> None:
    """Another thread looks without waiting for its turn; here one looks before and after every call of C."""
    cache: BoundedCache[int, int] = BoundedCache(16 * ENTRY_BYTES)
    cache.put_all((key, key, 0) for key in range(16))
    looks = 0

    def look(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal looks
        if event.startswith("c_"):
            looks += 1
            for key in (3, looks % 64):
                assert cache.get(key) in (key, None)

    sys.setprofile(look)
    try:
        for begin in range(16, 64, 4):
            cache.put_all([(key, key, 0) for key in range(begin, begin + 4)])
    finally:
        sys.setprofile(None)
    assert looks > 50
    assert (len(cache), cache.held) == (16, 16 * ENTRY_BYTES)
    assert cache.get(3) == 3
