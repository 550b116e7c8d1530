"""An optimised graph on disk: what it was made of and the graph under one digest, weights under theirs.

    8 bytes    CIRGRAPH
    32 bytes   sha256 of everything from here to the end of the model
    16 bytes   lengths of header and model, little-endian
    header     JSON: {"key": {...}, "weights": [[name, kind, shape, offset], ...],
               "bytes": of the weights' part, "digests": [sha256 of each 4 MiB of it, ...]}
    model      ONNX, without its large weights
    weights    from the next multiple of 64 bytes on, each at its offset from there, a multiple of 64

Header and model are looked at once their digest is right. Weights are numbers and nothing else: a session
may be made of them while another thread still holds them against theirs, and nothing is computed before
that has ended. The file is read into memory of its own: whoever changes it later changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import count
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
_BEGIN = _SEALED + 16
_CHUNK = 4 << 20
_MOST_HEADER = 4 << 20
_ALIGNED = 64

_Bytes = npt.NDArray[np.uint8]
_DAMAGED = "it is damaged or was cut short"


class GraphFile(NamedTuple):
    """A kept graph.

    Attributes:
        key: what it was made of.
        model: ONNX, without its large weights.
        weights: these, by name, in memory that belongs to them.
        whole: waits until all weights were held against their digests, and says whether they are right.
    """

    key: dict[str, Any]
    model: bytes
    weights: list[tuple[str, npt.NDArray[Any]]]
    whole: Callable[[], bool]


def write_graph(path: Path, key: dict[str, Any], model: bytes, weights: Sequence[Weight]) -> None:
    """Keep a graph; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    listed: list[list[Any]] = []
    parts: list[bytes | memoryview] = []
    at = 0
    for weight in weights:
        padding = -at % _ALIGNED
        listed.append([weight.name, weight.kind, list(weight.shape), at + padding])
        parts += (bytes(padding), weight.data)
        at += padding + len(weight.data)
    said = {"key": key, "weights": listed, "bytes": at, "digests": _digests(parts)}
    header = json.dumps(said, sort_keys=True).encode()
    lengths = len(header).to_bytes(8, "little") + len(model).to_bytes(8, "little")
    seal = _seal(lengths, header, model)
    aligned = bytes(-(_BEGIN + len(header) + len(model)) % _ALIGNED)
    write_sealed(path, _MAGIC + seal, lengths, header, model, aligned, *parts)


def _seal(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _digests(parts: Sequence[bytes | memoryview]) -> list[str]:
    """Of each chunk of the parts as one: they are not joined, which would copy all weights."""
    digests: list[str] = []
    chunk, room = hashlib.sha256(), _CHUNK
    for content in parts:
        part: memoryview = memoryview(content)
        at = 0
        while at < len(part):
            piece = part[at : at + room]
            chunk.update(piece)
            at, room = at + len(piece), room - len(piece)
            if not room:
                digests.append(chunk.hexdigest())
                chunk, room = hashlib.sha256(), _CHUNK
    return digests if room == _CHUNK else [*digests, chunk.hexdigest()]


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
        if not _BEGIN <= status.st_size <= most:
            return _DAMAGED
        return _read(descriptor, status.st_size)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, IndexError, OverflowError):
        return "its header cannot be read"
    finally:
        os.close(descriptor)


def _read(descriptor: int, size: int) -> GraphFile | str:
    """The file, once the digest of header and model is what it says."""
    begin = os.pread(descriptor, _BEGIN, 0)
    if len(begin) != _BEGIN or begin[: len(_MAGIC)] != _MAGIC:
        return "it is no graph of this version of cir-infer"
    lengths = begin[_SEALED:]
    said, model_length = int.from_bytes(lengths[:8], "little"), int.from_bytes(lengths[8:], "little")
    end = _BEGIN + said + model_length
    if said > _MOST_HEADER or end > size:
        return _DAMAGED
    text, model = os.pread(descriptor, said, _BEGIN), os.pread(descriptor, model_length, _BEGIN + said)
    if _seal(lengths, text, model) != begin[len(_MAGIC) : _SEALED]:
        return _DAMAGED
    header = read_json(text)
    at = end + -end % _ALIGNED
    wanted, digests = int(header["bytes"]), [bytes.fromhex(digest) for digest in header["digests"]]
    if at + wanted != size or len(digests) != -(-wanted // _CHUNK) or not isinstance(header["key"], dict):
        return _DAMAGED
    data = _aligned(wanted)
    if not _filled(descriptor, data, at):
        return _DAMAGED
    return GraphFile(header["key"], model, list(_arrays(header["weights"], data)), _Held(data, digests).whole)


def _aligned(size: int) -> _Bytes:
    room = np.empty(size + _ALIGNED, np.uint8)
    begin = -room.ctypes.data % _ALIGNED
    return room[begin : begin + size]


def _filled(descriptor: int, data: _Bytes, at: int) -> bool:
    """Read the weights, in two threads: taking memory costs as much as the copy."""
    view = data.data
    numbers = count()

    def part() -> bool:
        with native_call:
            while (start := next(numbers) * _CHUNK) < len(data):
                chunk = view[start : start + _CHUNK]
                if os.preadv(descriptor, [chunk], at + start) != len(chunk):
                    return False
        return True

    if len(data) <= _CHUNK:
        return part()
    beside = Threads(1)
    other = beside.submit(part)
    try:
        mine = part()
    finally:
        whole = other.result()  # it reads the descriptor, which the caller closes
        beside.close()
    return mine and whole


def _arrays(listed: list[Any], data: _Bytes) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, kind, shape, offset in listed:
        if min(shape, default=0) < 0 or offset < 0 or offset % _ALIGNED:
            raise ValueError
        size = math.prod(shape) * NUMBERS[kind].itemsize
        if offset + size > len(data):
            raise ValueError
        yield str(name), data[offset : offset + size].view(NUMBERS[kind]).reshape(shape)


class _Held:
    """Weights that are held against their digests, by a thread and by whoever waits for the end."""

    def __init__(self, data: _Bytes, digests: list[bytes]) -> None:
        self._data, self._digests = data.data, digests
        self._numbers, self._damaged = count(), False
        beside = Threads(1)
        self._other = beside.submit(self._part)
        beside.close()

    def whole(self) -> bool:
        """See `GraphFile.whole`."""
        self._part()
        self._other.result()
        return not self._damaged

    def _part(self) -> None:
        with native_call:
            while not self._damaged and (number := next(self._numbers)) < len(self._digests):
                chunk = self._data[number * _CHUNK : (number + 1) * _CHUNK]
                if hashlib.sha256(chunk).digest() != self._digests[number]:
                    self._damaged = True
