"""Weights that `flax.serialization.to_bytes` wrote, in a pickle of those bytes.

The pickle holds one value, a string of bytes, and that is all that is read of it: what stands before and
after them are opcodes that build nothing, and no unpickler is asked. The bytes are MessagePack: tables by
name, and arrays as an extension of flax' own,

    ext 1 (an array) or 3 (a number):  [shape, name of the type, values]

Everything is read piece by piece from the file, so that it never stands in memory twice.
"""

from __future__ import annotations

import math
import re
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from cir_infer.errors import CheckpointError, shown

__all__ = ["FLAX", "is_flax", "read_flax"]

FLAX = "flax"
"""The one key of what is returned for such a file; its value are the weights by name."""

_START = re.compile(rb"\x80[\x03-\x05](?:\x95.{8})?(?:C|B|\x8e)", re.DOTALL)
_END = re.compile(rb"(?:\x95.{8})?(?:\x94|q.|r.{4})?\.", re.DOTALL)
_LENGTHS = {b"C": 1, b"B": 4, b"\x8e": 8}
_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_LONGEST_END = 15
_MOST_DEPTH = 32
_MOST_VALUES = 10_000
_LONGEST_NAME = 200
_MOST_AXES = 8


def is_flax(start: bytes) -> bool:
    """Whether a file is a pickle of bytes, by the first 16 of it."""
    return _START.match(start) is not None


def read_flax(path: Path) -> dict[str, Tensor]:
    """The weights by name, "params/clip/logit_scale", as they are stored. Nothing is executed.

    Raises:
        CheckpointError: the bytes are no weights of flax, or cut short, or hold something else.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).weights()
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is a pickle of bytes, but they are no weights that flax wrote: {shown(str(error), 200)}"
        ) from error


class _Reader:
    """The file, from its beginning, and how much may still be read."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file, self._left, self._values = file, size, 0

    def weights(self) -> dict[str, Tensor]:
        head = self._file.read(20)
        opening = _START.match(head)
        assert opening is not None  # `is_flax` said so
        self._file.seek(opening.end())
        self._left -= opening.end()
        length = int.from_bytes(self._take(_LENGTHS[opening[0][-1:]]), "little")
        if length >= self._left:
            raise ValueError(f"it announces {length:,} bytes and has {self._left:,}")
        start = self._file.tell()
        self._file.seek(start + length)
        if not _END.fullmatch(self._file.read(_LONGEST_END + 1)):
            raise ValueError("it holds more than one value")
        self._file.seek(start)
        self._left = length
        found: dict[str, Tensor] = {}
        self._table(found, "", 0)
        if self._left:
            raise ValueError(f"{self._left:,} bytes follow its table")
        return found

    def _take(self, count: int) -> bytearray:
        if count > self._left:
            raise ValueError("it is cut short")
        data = bytearray(count)
        if self._file.readinto(data) != count:
            raise ValueError("it is cut short")
        self._left -= count
        return data

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "big")

    def _table(self, found: dict[str, Tensor], where: str, depth: int) -> None:
        """A table whose values are tables or arrays, into `found`."""
        kind = self._number(1)
        if 0x80 <= kind <= 0x8F:
            count = kind & 15
        elif kind in (0xDE, 0xDF):
            count = self._number(2 if kind == 0xDE else 4)
        elif kind in (0xC7, 0xC8, 0xC9) or 0xD4 <= kind <= 0xD8:
            found[where.removesuffix("/")] = self._array(kind, where)
            return
        else:
            raise ValueError(f"{shown(where)} is of kind 0x{kind:02x}; expected a table or an array")
        if depth >= _MOST_DEPTH:
            raise ValueError(f"its tables are nested more than {_MOST_DEPTH} deep")
        for _ in range(count):
            self._values += 1
            if self._values > _MOST_VALUES:
                raise ValueError(f"it has more than {_MOST_VALUES:,} values")
            name = where + self._text() + "/"
            before = len(found)
            self._table(found, name, depth + 1)
            if len(found) == before:
                raise ValueError(f"{shown(name)} is empty, or stands there twice")

    def _text(self) -> str:
        kind = self._number(1)
        if 0xA0 <= kind <= 0xBF:
            length = kind & 31
        elif kind == 0xD9:
            length = self._number(1)
        else:
            raise ValueError(f"a name is of kind 0x{kind:02x}; expected a short text")
        if length > _LONGEST_NAME:
            raise ValueError(f"a name has {length} bytes; expected at most {_LONGEST_NAME}")
        return self._take(length).decode()

    def _array(self, kind: int, where: str) -> Tensor:
        size = self._number({0xC7: 1, 0xC8: 2, 0xC9: 4}[kind]) if kind <= 0xC9 else 1 << (kind - 0xD4)
        extension = self._number(1)
        if extension not in (1, 3):
            raise ValueError(f"{shown(where)} is of extension {extension}; expected 1, an array of flax")
        end = self._left - size
        if end < 0 or self._number(1) != 0x93:
            raise ValueError(f"{shown(where)} is no array of flax, or is cut short")
        shape = self._shape(where)
        name = self._text()
        dtype = _TYPES.get(name)
        if dtype is None:
            raise ValueError(f"{shown(where)} is of type {shown(name)}; expected one of {', '.join(_TYPES)}")
        bytes_kind = self._number(1)
        if bytes_kind not in (0xC4, 0xC5, 0xC6):
            raise ValueError(f"{shown(where)} has values of kind 0x{bytes_kind:02x}; expected bytes")
        length = self._number({0xC4: 1, 0xC5: 2, 0xC6: 4}[bytes_kind])
        if not length or length != math.prod(shape) * dtype.itemsize or self._left - length != end:
            raise ValueError(f"{shown(where)} has {length:,} bytes, which is not an array of shape {shape}")
        return torch.frombuffer(self._take(length), dtype=dtype).view(shape)

    def _shape(self, where: str) -> tuple[int, ...]:
        kind = self._number(1)
        if not 0x90 <= kind <= 0x90 + _MOST_AXES:
            raise ValueError(f"{shown(where)} has a shape of kind 0x{kind:02x}; expected at most 8 axes")
        return tuple(self._length(where) for _ in range(kind & 15))

    def _length(self, where: str) -> int:
        kind = self._number(1)
        if kind < 0x80:
            return kind
        if 0xCC <= kind <= 0xCF:
            return self._number(1 << (kind - 0xCC))
        raise ValueError(f"{shown(where)} has an axis of kind 0x{kind:02x}; expected a number")
