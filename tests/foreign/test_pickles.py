"""Pickles that would take more than they hold are refused before any of them is carried out."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_eval.datasets.plain_pickle import load_plain
from cir_infer.foreign import check_pickle

PRIME = (1 << 61) - 1
"""Multiples of it have one hash."""


def check(data: bytes, **options: Any) -> None:
    check_pickle(io.BytesIO(data), **options)


def colliding(count: int) -> bytes:
    return b"".join(b"\x8a\x0a" + (n * PRIME).to_bytes(10, "little") for n in range(1, count))


HOSTILE = {
    "a memo of gigabytes": b"\x80\x04Nr" + struct.pack("<I", 1 << 28) + b".",
    "a memo of gigabytes as text": b"Np268435456\n.",
    "a value that was not kept": b"\x80\x04h\x05.",
    "keys that collide": b"\x80\x04}(" + colliding(3000).replace(b"\x8a\x0a", b"N\x8a\x0a")[1:] + b"Nu.",
    "keys that collide, one by one": b"\x80\x04}"
    + b"".join(b"\x8a\x0a" + (n * PRIME).to_bytes(10, "little") + b"Ns" for n in range(1, 3000))
    + b".",
    "a frozen set of such": b"\x80\x04(" + colliding(3000) + b"\x91.",
    "a set of such": b"\x80\x04\x8f(" + colliding(3000) + b"\x90.",
    "keys that are tuples of numbers": pickle.dumps({(n, n + 1): 0 for n in range(3000)}),
    "keys that are fractions": pickle.dumps({n + 0.5: 0 for n in range(3000)}),
    "a call with many numbers": b"\x80\x04cbuiltins\nset\n(" + colliding(20_000) + b"l\x85R.",
    "tuples without an end": b"\x80\x04)" + b"\x85" * 100_000 + b".",
    "a number of a megabyte": b"\x80\x04\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    "a number of many digits": b"L" + b"9" * 10_000 + b"L\n.",
    "more steps than any": b"\x80\x04(" + b"N" * 1_000_001 + b"l.",
    "a mark for a value": b"\x80\x04(\x85.",
    "nothing on the stack": b"\x80\x04\x85.",
    "an unknown opcode": b"\x80\x04\xff.",
    "no end": b"\x80\x04N",
    "nothing": b"",
    "a text longer than the file": b"\x80\x04X\xff\xff\xff\x7fab.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check(HOSTILE[what])
    assert len(str(caught.value)) < 300


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.text())
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(PLAIN, st.integers(0, 5))
def test_what_pickle_writes_passes(value: Any, protocol: int) -> None:
    check(pickle.dumps(value, protocol))


def test_what_data_sets_and_checkpoints_hold_passes() -> None:
    shared = ["a"] * 3
    for value in (
        {f"word{n}": n for n in range(20_000)},
        {n: f"word{n}" for n in range(20_000)},
        OrderedDict((f"layer.{n}", [float(n)] * 3) for n in range(2000)),
        {"a": shared, "b": shared},
        [{"pos": (n / 3, n / 7), "names": {"x", "y"}} for n in range(5000)],
        np.arange(10_000.0),
    ):
        check(pickle.dumps(value))
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps([2]))
    check_pickle(stream, pickles=2)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6, dtype=">i2"),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.array(["a", None, 3], object),
        np.float32(2.5),
        np.array([True, False]),
        [np.zeros(0), {"a": np.int64(3)}],
    ],
    ids=str,
)
def test_arrays_come_back(value: Any, protocol: int) -> None:
    found = load_plain(io.BytesIO(pickle.dumps(value, protocol)))
    if isinstance(value, list):
        assert found[0].shape == (0,)
        assert found[1] == {"a": 3}
        return
    np.testing.assert_array_equal(np.asarray(found), np.asarray(value))
    assert np.asarray(found).dtype == np.asarray(value).dtype.newbyteorder("=")


def state_of(shape: bytes, dtype: bytes, values: bytes) -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return b"\x80\x04" + made + b"(K\x01" + shape + dtype + b"\x89" + values + b"tb."


FLOAT = b"cnumpy\ndtype\n(X\x02\0\0\0f8\x89\x88tR"
RECORD = (
    b"cnumpy\ndtype\n(X\x02\0\0\0V8\x89\x88tR(K\x03X\x01\0\0\0|N(X\x01\0\0\0ft}X\x01\0\0\0f"
    b"(cnumpy\ndtype\n(X\x01\0\0\0O\x89\x88tRK\0tsK\x08K\x01K\0tb"
)
ARRAYS = {
    "an array that calls itself": b"\x80\x04cnumpy\nndarray\n(J\x00\xca\x9a;tR.",
    "pointers as values": state_of(b"(K\x01t", RECORD, b"C\x08aaaaaaaa"),
    "more elements than values": state_of(b"(J\xff\xff\xff\x7ft", FLOAT, b"C\x08aaaaaaaa"),
    "a negative shape": state_of(b"(J\xff\xff\xff\xfft", FLOAT, b"C\x08aaaaaaaa"),
    "an element of gigabytes": b"\x80\x04cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n"
    b"(X\x0b\0\0\0S1000000000tRC\0tR.",
    "a size told later": b"\x80\x04cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\0\0\0S1\x89\x88tR"
    b"(K\x03X\x01\0\0\0|NNNJ\0\xca\x9a;K\x01K\0tbC\0tR.",
    "objects as bytes": state_of(b"(K\x01t", b"cnumpy\ndtype\n(X\x01\0\0\0O\x89\x88tR", b"C\x08aaaaaaaa"),
    "another class": b"\x80\x04cos\nsystem\n(X\x02\0\0\0lstR.",
}


@pytest.mark.parametrize("what", ARRAYS)
def test_no_array_is_made_of_what_is_not_there(what: str) -> None:
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError)):
        load_plain(io.BytesIO(ARRAYS[what]))
