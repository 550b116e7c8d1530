"""An optimised graph on disk: what it was made of and the graph under one digest, weights under theirs.

    8 bytes    CIRGRAPH
    32 bytes   sha256 of everything from here to the end of the model
    16 bytes   lengths of header and model, little-endian
    header     JSON: {"key": {...}, "weights": [[name, kind, shape, offset], ...],
               "bytes": of the weights' part, "digests": [sha256 of each 16 MiB of it, ...]}
    model      ONNX, without its large weights
    weights    from the next multiple of 64 bytes on, each at its offset from there, a multiple of 64

Nothing of it is looked at before its digest is right. The file is read into memory of its own: whoever
changes it later changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.foreign import read_json
from cir_infer.processes.ending import native_call
from cir_infer.processes.threads import Task, Threads
from cir_infer.runtime.kept.folder import whose, write_sealed
from cir_infer.runtime.kept.weights import Weight

__all__ = ["GraphFile", "Reading", "begin_reading", "read_graph", "write_graph"]

_MAGIC = b"CIRGRAPH"
_SEALED = len(_MAGIC) + 32
_BEGIN = _SEALED + 16
_CHUNK = 16 << 20
"""Bytes that are read and hashed at once. After each a thread waits for its turn in Python, up to 5 ms."""
_MOST_HEADER = 4 << 20
_ALIGNED = 64

_Bytes = npt.NDArray[np.uint8]
_DAMAGED = "it is damaged or was cut short"
_UNREADABLE = "its header cannot be read"


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
    return begin_reading([(path, most)])[0].result()


def begin_reading(files: Sequence[tuple[Path, int]]) -> list[Reading]:
    """Have a thread read kept graphs and hold them against their digests.

    It is native code for the most part. When this returns that has begun, so that what the caller does next
    may hold Python's lock for long.

    Args:
        files: paths and, of each, the bytes that it may have, as for `read_graph`.
    """
    beside = Threads(1)
    opened = [_opened(path, most) for path, most in files]
    filled = [None if isinstance(file, _Refused) else beside.submit(file.fill) for file in opened]
    checked = [None if isinstance(file, _Refused) else beside.submit(file.check) for file in opened]
    beside.close()
    for file in opened:
        if isinstance(file, _Open):
            with file.begun:
                break
    return [Reading(*parts) for parts in zip(opened, filled, checked, strict=True)]


class Reading:
    """A kept graph that is being read.

    Args:
        file: of it.
        filled: reads its weights.
        checked: holds them against their digests.
    """

    def __init__(self, file: _Open | _Refused, filled: Task[None] | None, checked: Task[None] | None) -> None:
        self._file, self._filled, self._checked = file, filled, checked

    def result(self) -> GraphFile | str | None:
        """What `read_graph` gives. Whoever waits for it helps."""
        if isinstance(self._file, _Refused):
            return self._file.reason
        assert self._filled is not None
        assert self._checked is not None
        try:
            self._filled.run()
            self._filled.result()
            self._file.check()
            self._checked.run()
            self._checked.result()
            return self._file.graph()
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            return _UNREADABLE

    def cancel(self) -> None:
        """Leave what has not begun."""
        if isinstance(self._file, _Refused):
            return
        assert self._filled is not None
        assert self._checked is not None
        if self._filled.cancel():
            self._file.close()
        self._checked.cancel()


class _Refused(NamedTuple):
    reason: str | None


def _opened(path: Path, most: int) -> _Open | _Refused:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        file = os.fdopen(descriptor, "rb", buffering=0)
    except FileNotFoundError:
        return _Refused(None)
    except OSError as error:
        return _Refused(f"it cannot be read ({error.strerror})")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            reason = "it is no file"
        elif others := whose(status):
            reason = others
        elif not _BEGIN <= status.st_size <= most:
            reason = _DAMAGED
        else:
            opened = _header(file, status.st_size)
            if isinstance(opened, _Open):
                return opened
            reason = opened
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, IndexError, OverflowError):
        reason = _UNREADABLE
    except MemoryError:
        reason = "there is no memory for it"
    file.close()
    return _Refused(reason)


def _header(file: FileIO, size: int) -> _Open | str:
    """The file, once the digest of header and model is what it says."""
    descriptor = file.fileno()
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
    return _Open(file, at, header, model, digests)


class _Open:
    """A kept graph whose header and model are right, and whose weights are not read.

    Attributes:
        begun: locked until they are being read.
    """

    def __init__(
        self, file: FileIO, at: int, header: dict[str, Any], model: bytes, digests: list[bytes]
    ) -> None:
        self._file, self._at, self._header, self._model, self._digests = file, at, header, model, digests
        self._weights = _room(int(header["bytes"]))
        self._numbers, self._read, self._damaged = count(), False, False
        self.begun = threading.Lock()
        self.begun.acquire()

    def close(self) -> None:
        """In place of `fill`."""
        self._file.close()

    def fill(self) -> None:
        """Read the weights."""
        self.begun.release()
        view, done = self._weights.data, 0
        with native_call, self._file:
            while done < len(view):
                read = os.preadv(self._file.fileno(), [view[done:]], self._at + done)
                if read < 1:
                    self._damaged = True
                    return
                done += read
        self._read = True

    def check(self) -> None:
        """Hold chunks of the weights against their digests until none is left; other threads take theirs.

        Nothing, where they are not read yet: whoever reads them comes here afterwards.
        """
        if not self._read:
            return
        view = self._weights.data
        with native_call:
            while not self._damaged and (number := next(self._numbers)) < len(self._digests):
                chunk = view[number * _CHUNK : (number + 1) * _CHUNK]
                if hashlib.sha256(chunk).digest() != self._digests[number]:
                    self._damaged = True

    def graph(self) -> GraphFile | str:
        """What it is, once all chunks were checked."""
        if self._damaged:
            return _DAMAGED
        arrays = list(_arrays(self._header["weights"], self._weights))
        return GraphFile(self._header["key"], self._model, arrays)


def _room(size: int) -> _Bytes:
    """Memory of zeros that begins with a page.

    Not NumPy's: that asks for huge pages, and in one start of three the kernel took 100 to 200 ms to make
    them.
    """
    if not size:
        return np.empty(0, np.uint8)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError from error
    return np.frombuffer(memory, np.uint8)


def _arrays(listed: list[Any], data: _Bytes) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, kind, shape, offset in listed:
        if min(shape, default=0) < 0 or offset < 0 or offset % _ALIGNED:
            raise ValueError
        size = math.prod(shape) * NUMBERS[kind].itemsize
        if offset + size > len(data):
            raise ValueError
        yield str(name), data[offset : offset + size].view(NUMBERS[kind]).reshape(shape)
