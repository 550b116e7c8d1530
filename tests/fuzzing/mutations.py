"""Hostile variations of good inputs, the same for the same seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 62,
    (1 << 64) - 1,
)
_WEIRD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 7, 1 << 31, 1 << 62, 1 << 70, -(1 << 63), 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "\x00", "../../etc/passwd", "/etc/passwd", "a" * 3000, "\ud800", "💥",
    [], {}, [[]], [0] * 50, {"": {}},
)  # fmt: skip


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A few random edits of some bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        kind = rng.randrange(8)
        at = rng.randrange(len(out) + 1)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 8, 64, 1024))]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        elif kind == 4:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(_NUMBERS) % (1 << 8 * size)
            out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 5:
            del out[at:]
            if rng.random() < 0.1:
                out += rng.choice((b"[", b'{"a":', b"(", b"not ")) * 50_000
        elif kind == 6:
            piece = out[at : at + rng.randrange(1, 64)]
            out[at:at] = piece * rng.choice((1, 2, 50))
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + 64] = other[start : start + 64]
        if len(out) > 1 << 20:
            del out[1 << 20 :]
    return bytes(out)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one or two parts replaced, removed, renamed or multiplied."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            return weird(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "../x", key + "\x00", "image"))] = holder.pop(key)
        elif kind == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice(
                (-holder[key], holder[key] + 1, holder[key] * 1000, 1 << 40, str(holder[key]))
            )
        elif kind == 3 and isinstance(holder[key], list):
            holder[key] = holder[key] * rng.choice((0, 2, 100))
        elif kind == 4 and rng.random() < 0.1:
            for _ in range(rng.choice((30, 300))):
                holder[key] = [holder[key]]
        else:
            holder[key] = weird(rng)
    return value


def weird(rng: random.Random) -> Any:
    """Some value that nobody expects, a copy: the next mutation may change it."""
    return copy.deepcopy(rng.choice(_WEIRD))


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = (
            list(holder)
            if isinstance(holder, dict)
            else range(len(holder))
            if isinstance(holder, list)
            else []
        )
        for key in keys:
            found.append((holder, key))
            stack.append(holder[key])
    return found
