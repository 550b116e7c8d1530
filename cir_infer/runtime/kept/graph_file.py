"""An optimised graph on disk: a header that says what it was made of, sealed by a digest checked before use.

    8 bytes    CIRGRAPH
    32 bytes   sha256 of the sha256 of each 4 MiB of everything that follows
    8 bytes    length of the header, little-endian
    header     JSON: {"key": {...}, "model": its bytes, "weights": [[name, kind, shape, offset], ...]}
    model      ONNX, without its large weights
    weights    each at its offset from the file's begin, a multiple of 64

It is read into memory of its own, by two threads, and looked at as it lies there: whoever changes the file
later changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.foreign import read_json
from cir_infer.processes.ending import native_call
from cir_infer.processes.threads import Threads
from cir_infer.runtime.kept.folder import is_ours, write_sealed
from cir_infer.runtime.kept.weights import Weight

__all__ = ["GraphFile", "read_graph", "write_graph"]

_MAGIC = b"CIRGRAPH"
_SEALED = len(_MAGIC) + 32
_CHUNK = 4 << 20
_MOST_HEADER = 4 << 20
_ALIGNED = 64


class GraphFile(NamedTuple):
    """A kept graph.

    Attributes:
        key: what it was made of.
        model: ONNX, without its large weights.
        weights: these, by name, in memory that belongs to them.
    """

    key: dict[str, Any]
    model: bytes
    weights: list[tuple[str, npt.NDArray[Any]]]


def write_graph(path: Path, key: dict[str, Any], model: bytes, weights: Sequence[Weight]) -> None:
    """Keep a graph; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    listed = [[weight.name, weight.kind, list(weight.shape), 0] for weight in weights]
    # Offsets are numbers in the header, whose length they change: written as wide as any can be.
    room = len(_header(key, model, listed)) + 20 * len(weights)
    at = _SEALED + 8 + room + len(model)
    parts: list[bytes | memoryview] = []
    for weight, entry in zip(weights, listed, strict=True):
        padding = -at % _ALIGNED
        entry[3] = at + padding
        parts += (bytes(padding), weight.data)
        at += padding + len(weight.data)
    header = _header(key, model, listed).ljust(room)
    content = (room.to_bytes(8, "little"), header, model, *parts)
    write_sealed(path, _MAGIC + _digest(content), *content)


def _header(key: dict[str, Any], model: bytes, listed: list[list[Any]]) -> bytes:
    return json.dumps({"key": key, "model": len(model), "weights": listed}, sort_keys=True).encode()


def _digest(parts: Sequence[bytes | memoryview]) -> bytes:
    """Of the parts as one: they are not joined, which would copy all weights."""
    digests: list[bytes] = []
    chunk, room = hashlib.sha256(), _CHUNK
    for content in parts:
        part: memoryview = memoryview(content)
        at = 0
        while at < len(part):
            piece = part[at : at + room]
            chunk.update(piece)
            at, room = at + len(piece), room - len(piece)
            if not room:
                digests.append(chunk.digest())
                chunk, room = hashlib.sha256(), _CHUNK
    if room < _CHUNK:
        digests.append(chunk.digest())
    return hashlib.sha256(b"".join(digests)).digest()


def read_graph(path: Path, most: int) -> GraphFile | str | None:
    """A kept graph; None where there is none; the reason, in words, why it cannot be used.

    Args:
        path: of it.
        most: bytes that it may have.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "it is no file"
        if not is_ours(status):
            return "others may write to it"
        if not _SEALED + 8 <= status.st_size <= most:
            return "it is damaged or was cut short"
        data = _read(descriptor, status.st_size)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    finally:
        os.close(descriptor)
    if isinstance(data, str):
        return data
    try:
        return _parsed(data)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError):
        return "its header cannot be read"


def _read(descriptor: int, size: int) -> npt.NDArray[np.uint8] | str:
    """The file's bytes, once their digest is what the file says."""
    room = np.empty(size + _ALIGNED, np.uint8)
    begin = -room.ctypes.data % _ALIGNED
    data = room[begin : begin + size]
    view = data.data
    starts = range(_SEALED, size, _CHUNK)
    digests = [b""] * len(starts)
    if os.preadv(descriptor, [view[:_SEALED]], 0) != _SEALED or bytes(view[:8]) != _MAGIC:
        return "it is no graph of this version of cir-infer"

    def part(first: int) -> bool:
        """Every second chunk: reading and hashing leave the interpreter to the other half."""
        with native_call:
            for number in range(first, len(starts), 2):
                chunk = view[starts[number] : starts[number] + _CHUNK]
                if os.preadv(descriptor, [chunk], starts[number]) != len(chunk):
                    return False
                digests[number] = hashlib.sha256(chunk).digest()
        return True

    beside = Threads(1)
    other = beside.submit(part, 1)
    try:
        mine = part(0)
    finally:
        whole = other.result()  # it reads the descriptor, which the caller closes
        beside.close()
    sealed = bytes(view[len(_MAGIC) : _SEALED])
    if not (mine and whole) or hashlib.sha256(b"".join(digests)).digest() != sealed:
        return "it is damaged or was cut short"
    return data


def _parsed(data: npt.NDArray[np.uint8]) -> GraphFile:
    length = int.from_bytes(bytes(data[_SEALED : _SEALED + 8]), "little")
    begin = _SEALED + 8 + length
    if length > _MOST_HEADER or begin > len(data):
        raise ValueError
    header = read_json(bytes(data[_SEALED + 8 : begin]))
    end = begin + int(header["model"])
    if not isinstance(header["key"], dict) or not begin <= end <= len(data):
        raise ValueError
    weights = []
    for name, kind, shape, offset in header["weights"]:
        if min(shape, default=0) < 0 or not end <= offset or offset % _ALIGNED:
            raise ValueError
        size = math.prod(shape) * NUMBERS[kind].itemsize
        if offset + size > len(data):
            raise ValueError
        weights.append((str(name), data[offset : offset + size].view(NUMBERS[kind]).reshape(shape)))
    return GraphFile(header["key"], bytes(data[begin:end]), weights)
