"""Values of every kind that a program may pass, and some that none should."""

from __future__ import annotations

import enum
import io
from collections import OrderedDict, UserDict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from cir_infer import Hit
from tests.bundles import DIM


class OwnError(Exception):
    """What an object of the caller's own raises; it may come out as it went in."""


class Spiteful:
    """Looks like everything, and raises wherever it is touched."""

    def _raise(self, *_: Any) -> Any:
        raise OwnError

    __len__ = __iter__ = __getitem__ = __bool__ = __eq__ = __str__ = __repr__ = __index__ = _raise
    __float__ = __int__ = __array__ = __fspath__ = __contains__ = read = keys = items = _raise
    __hash__ = None  # type: ignore[assignment]


class Colour(str, enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Plain(enum.Enum):
    THING = 1


class Text(str):
    def __str__(self) -> str:
        return "another text"


class Number(int):
    def __index__(self) -> int:
        return -7


def all_values() -> list[Any]:
    loop: list[Any] = []
    loop += [loop, {"me": loop}]
    deep: Any = 1
    for _ in range(300):
        deep = {"$not": deep} if _ % 2 else [deep]
    return [
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        7,
        1 << 31,
        1 << 63,
        -(1 << 63),
        1 << 64,
        10**400,
        10**6000,
        Number(2),
        Size.LARGE,
        0.5,
        1.0,
        -0.0,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        1j,
        Decimal("1.5"),
        Decimal("NaN"),
        Decimal("1E+999999"),
        Decimal("0.1234567890123456789"),
        Fraction(1, 3),
        np.int64(2),
        np.uint64(2**64 - 1),
        np.int8(-3),
        np.float16(0.5),
        np.float32("nan"),
        np.float64(2),
        np.longdouble(1) / 3,
        np.bool_(True),
        np.str_("a"),
        np.bytes_(b"a"),
        np.complex64(1),
        np.datetime64("2024-05-17"),
        np.datetime64("NaT"),
        np.datetime64("10000-01-01"),
        np.timedelta64(1, "D"),
        np.void(b"abc"),
        date(2024, 5, 17),
        datetime(2024, 5, 17, 9),
        datetime.max,
        time(9),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))),
        time(9, tzinfo=timezone.utc),
        timedelta(1),
        "",
        "a",
        "0-1",
        "x" * 5000,
        "\x00",
        "a\x00b",
        "\ud800",
        "\U0010ffff",
        "$and",
        "null",
        "2024-05-17",
        "price < 3",
        "error",
        "replace",
        "auto",
        "cpu",
        "float32",
        Text("a"),
        Colour.RED,
        Plain.THING,
        b"",
        b"a",
        bytearray(b"a"),
        memoryview(b"ab"),
        Path("a"),
        PurePosixPath("a\x00b"),
        Path("x" * 300),
        [],
        [None],
        ["a"],
        ["a", "a"],
        [1],
        [[]],
        ["0-1", "0-3"],
        (),
        ("a", 1),
        {"a"},
        frozenset(),
        {1: 2},
        {},
        {"a": 1},
        {"a": None},
        {"": 1},
        {"a.b": 1, "a": {"b": 2}},
        {"$and": []},
        {"$or": {}},
        {"$not": 1},
        {"a": {"in": None}},
        {"a": {"<": [1]}},
        {"price": {"in": range(10**5)}},
        [{}],
        [{"a": 1}, None],
        OrderedDict(a=1),
        UserDict(a=1),
        deque(["a"]),
        range(3),
        range(10**12),
        loop,
        deep,
        {"x": loop},
        np.zeros(0),
        np.zeros(3),
        np.array(5),
        np.array(["a"]),
        np.array([None, "a"], object),
        np.ones((2, DIM)),
        np.ones((2, DIM), np.float16),
        np.ones((2, DIM), np.int32),
        np.ones((1, DIM, 1)),
        np.ones((0, DIM)),
        np.full((2, DIM), np.nan),
        np.full((2, DIM), 1e300),
        np.ones((2, DIM), bool),
        np.ones((2, DIM), complex),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.array([(1, 2)], [("a", int), ("b", int)]),
        np.ones((4, DIM))[::2],
        np.ones((2, 2, DIM), np.float32),
        Image.new("RGB", (8, 8)),
        Image.new("L", (1, 1)),
        Image.new("RGB", (0, 0)),
        io.BytesIO(b"abc"),
        Hit("0-1"),
        Hit("nobody"),
        object(),
        object,
        Spiteful(),
        Spiteful,
        lambda: 1,
        len,
        ...,
        NotImplemented,
    ]
