"""Protocol buffers as far as ONNX models need them: fields of (number << 3 | kind) and a value.

Kind 0 is a variable-length integer, 1 and 5 are 8 and 4 bytes, 2 is a length and so many bytes; see
https://protobuf.dev/programming-guides/encoding. Nothing is executed, and every length is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["field", "field_head", "fields_of", "integers_of", "signed", "text_of", "typed_fields"]


def fields_of(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or the bytes.

    Raises:
        ValueError, IndexError: the message ends too early, or holds what is no field.
    """
    return ((number, value) for number, _, value in typed_fields(data))


def typed_fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, kind and value of each field: an int, or the bytes.

    A number that is wider than a field's may be is refused: readers that cut it to 32 bits find a field that
    counts where others find one that they do not know.

    Raises:
        ValueError, IndexError: the message ends too early, or holds what is no field.
    """
    at = 0
    while at < len(data):
        key, at = _integer_at(data, at)
        kind = key & 7
        if not 8 <= key < 1 << 32:
            raise ValueError(f"a field of number {key >> 3}")
        if kind == 0:
            value: Any
            value, at = _integer_at(data, at)
            yield key >> 3, kind, value
            continue
        if kind == 2:
            length, at = _integer_at(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if length > len(data) - at:
            raise ValueError("it ends too early")
        yield key >> 3, kind, data[at : at + length]
        at += length


def integers_of(packed: memoryview) -> Iterator[int]:
    """Integers of variable length that stand one behind the other, without keys.

    Raises:
        ValueError, IndexError: one has no end, or more than 64 bits.
    """
    at = 0
    while at < len(packed):
        value, at = _integer_at(packed, at)
        yield value


def _integer_at(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise ValueError("a number of more than 64 bits")


def signed(value: int) -> int:
    """An integer of 64 bits with its sign."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text_of(value: int | memoryview) -> str:
    """A field's bytes as text.

    Raises:
        TypeError: it is a number, of which `bytes` would make as many zeros.
        UnicodeDecodeError: it is no UTF-8.
    """
    if isinstance(value, int):
        raise TypeError("a number where a text should be")
    return bytes(value).decode()


def field(number: int, value: int | bytes | memoryview) -> bytes:
    """A field as it is written: an int, or bytes with their length."""
    if isinstance(value, int):
        return _integer(number << 3) + _integer(value)
    return field_head(number, len(value)) + bytes(value)


def field_head(number: int, length: int) -> bytes:
    """What stands before a field of so many bytes."""
    return _integer(number << 3 | 2) + _integer(length)


def _integer(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
