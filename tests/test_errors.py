"""Errors stay short and printable, whatever they were made of."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir_infer.errors import BundleError, CirError, ExportError, UsageError, shown


@dataclass
class Record:
    name: str
    rows: list[int]


class Bad:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (3, "3"),
        (None, "None"),
        (np.float32(0.5), repr(np.float32(0.5))),
        ([1, "x"], "[1, 'x']"),
        ((1, 2), "(1, 2)"),
        ({"a": 1}, "{'a': 1}"),
        (b"\x00ab", "b'\\x00ab'"),
        (Path("a b/c.jpg"), "a b/c.jpg"),
        (KeyError("x"), "'x'"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
        (np.zeros((2, 3)), "ndarray of shape (2, 3)"),
        ("\x1b[31m\u202e\ud800", "'\\x1b[31m\\u202e\\ud800'"),
        (1 << 100_000, "a whole number of 100,001 bits"),
        (Bad(), "a value of type Bad"),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, ... (20 in all)]"),
        (Record("a", [1]), "Record(name='a', rows=[1])"),
        (Path("a\x1b/\udcff"), "a\\x1b/\\udcff"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        b"x" * 10_000_000,
        Path("x" * 1_000_000),
        ["x" * 1_000_000] * 100_000,
        dict.fromkeys(range(100000), "y" * 1000),
        dict.fromkeys(range(100000), 1).keys(),
        {"x" * 1_000_000},
        nested(100_000),
        Record("x" * 1_000_000, list(range(100_000))),
        ValueError("x" * 1_000_000),
        "\x00" * 1_000_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_large_value_is_shown_shortly_and_cheaply(value: object) -> None:
    tracemalloc.start()
    try:
        text = shown(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(text) < 1200
    assert text.isprintable()
    assert peak < 3_000_000 + (4_000_000 if isinstance(value, (Path, ValueError)) else 0)


VALUES = st.recursive(
    st.text() | st.integers() | st.binary() | st.none() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.integers(20, 300))
def test_whatever_is_shown_is_one_printable_line(value: object, limit: int) -> None:
    assert shown(value, limit).isprintable()


@given(st.text())
def test_a_message_is_printable_lines(text: str) -> None:
    message = str(CirError(text))
    assert all(line.isprintable() for line in message.split("\n"))
    assert str(pickle.loads(pickle.dumps(UsageError(message)))) == message


@pytest.mark.parametrize("kind", [UsageError, ExportError])
def test_no_message_is_long(kind: type[CirError]) -> None:
    message = str(kind("begin " + "x\x1b" * 10_000_000 + " end; do this"))
    assert len(message) <= kind.longest
    assert message.startswith("begin x")
    assert message.endswith("end; do this")
    assert str(pickle.loads(pickle.dumps(kind(message)))) == message


@pytest.mark.parametrize("length", [1000, 5000, 5_000_000])
def test_a_path_of_any_length_makes_a_message_of_a_line(length: int) -> None:
    path = "shop/" + "x" * length + "/artemis.cir"
    message = str(BundleError(f"{path} does not exist; expected a bundle (.cir) as cir-export writes it"))
    assert len(message) < 320
    assert message.startswith("shop/xxx") and "x/artemis.cir does not exist; expected a bundle" in message
    assert "characters left out" in message
    assert str(pickle.loads(pickle.dumps(BundleError(message)))) == message


def test_a_path_that_can_be_typed_stands_whole() -> None:
    message = f"/{'shop/' * 50}artemis.cir does not exist"
    assert str(BundleError(message)) == message
