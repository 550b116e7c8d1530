"""Files in object stores, by their addresses: s3://shop/photos/red%20dress.jpg. pyarrow reads them.

An address says which object and no more: no key, no password, no server, so whoever reads a gallery learns
none, and no gallery can send a reader elsewhere. Where a store is and who asks for it is said by the machine,
in the way of its own tools (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).

Stores are those that speak S3. Of Google's, pyarrow lists no folder without a marker of its own, so images
would be left out in silence, and it waits 15 minutes where nobody may ask; with Azure's it ends the process
(`std::terminate`) where no credentials are found.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote

from cir_infer.errors import CirError, ImageError, UsageError, shown
from cir_infer.extras import require
from cir_infer.inputs.store_asking import AHEAD, Answer, Line, StoreFile, ask

__all__ = [
    "NO_EMPTY_PARTS",
    "Ahead",
    "Entry",
    "asked_ahead",
    "below",
    "checked_address",
    "is_address",
    "is_url",
    "listed",
    "only",
    "opened_remote",
    "read_remote",
    "remote_status",
    "told",
]

_ADDRESS = re.compile(r"s3://", re.IGNORECASE)
_ANY = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,15})://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_REMEDIES = dict.fromkeys(
    ("gs", "gcs"),
    "Google's store answers to s3:// too, with HMAC keys and AWS_ENDPOINT_URL=https://storage.googleapis.com",
)
_REMEDY = "copy what it names to this machine, or mount it as a folder"
_PLAIN = "/-_.~!$&'()*+,;=:@[]"  # of what stands for itself in an address, what names of objects have
NO_EMPTY_PARTS = "objects of such names are not read: give them others (aws s3 mv --recursive)"
_FETCHED = 1 << 20
"""Bytes that are fetched at once of a file that is open."""
_BLOCKS_AHEAD = 8
"""So many times as many are on their way at most, or stand ready, for who reads it from its beginning on."""
_PASSED_OVER = 2
"""Who goes on by so many blocks at most will want the next. More would fetch many times what is looked at."""
_BUFFER = 1 << 16

_LOOKED_AT = 500

T = TypeVar("T")
A = TypeVar("A")

_allowed: tuple[str, ...] | None = None


class Entry(NamedTuple):
    """What is known of an object, or of what objects' names begin with: a folder.

    Attributes:
        name: its last part; "" for a folder that has none (`photos//a.png`), whose objects cannot be read.
        folder: whether it is one.
        st_size: bytes, as `os.stat` calls it; 0 for a folder.
        st_mtime_ns: when it was written; 0 where nobody knows.
    """

    name: str
    folder: bool
    st_size: int
    st_mtime_ns: int


def is_address(text: str) -> bool:
    """Whether a text is the address of a store, and no path of this machine."""
    return _ADDRESS.match(text) is not None


def is_url(text: str) -> bool:
    """Whether a text names something on another machine, in whatever way."""
    return _ANY.match(text) is not None


def told(text: str) -> str:
    """An address as messages show it; of one that has more than an address may have, the scheme alone."""
    found = _ANY.match(text)
    return text if found is None or text == _spelled(text) else f"{found['scheme'].lower()}://..."


def checked_address(text: str) -> str:
    """An address in the one spelling that it has here, without a slash at its end.

    Raises:
        UsageError: it holds more than the name of an object, or less.
    """
    found = _ADDRESS.match(text)
    if found is None:
        other = _ANY.match(text)
        scheme = None if other is None else other["scheme"].lower()
        what = shown(text) if scheme is None else f"{scheme}://..."
        remedy = "" if scheme is None else f"; {_REMEDIES.get(scheme, _REMEDY)}"
        raise UsageError(
            f"{what}: no address of a store that is read; expected one such as s3://bucket/photos{remedy}"
        )
    store, _, key = text[found.end() :].partition("/")
    # Of what follows nothing is told before it is known to be no password: such may have a slash, too.
    if not _BUCKET.fullmatch(store):
        raise UsageError(
            "s3://...: what follows is not the name of a store; expected s3://bucket/photos without keys and "
            "passwords, which belong into the settings of this machine (AWS_PROFILE, say)"
        )
    if "?" in key or "#" in key:
        raise UsageError(
            f"s3://{store}/...: an address ends where its object's name does; write ? as %3F and # as %23, "
            "and say where a store is by the settings of this machine (AWS_ENDPOINT_URL, say)"
        )
    try:
        plain = unquote(key, errors="strict").rstrip("/")
        address = below(f"s3://{store}", plain)
    except UnicodeError as error:
        raise UsageError(f"{shown(text)}: is not UTF-8, which addresses are") from error
    parts = plain.split("/")
    if {".", ".."} & {*parts}:  # what sends a request may take them for folders
        raise UsageError(f"{shown(text)}: has a part that is . or .., which no address has")
    if plain and "" in parts:
        raise UsageError(f"{shown(text)}: has an empty part (//); {NO_EMPTY_PARTS}")
    return address


def below(folder: str, name: str) -> str:
    """The address of what has a name below an address."""
    return f"{folder}/{quote(name, _PLAIN)}" if name else folder


def only(addresses: Sequence[str] | None) -> None:
    """Let this process read what lies at or below some addresses and nothing else; None for everything.

    For services: what they read is then said by whoever starts them, whatever a gallery says.

    Raises:
        UsageError: one is no address.
    """
    global _allowed
    _allowed = None if addresses is None else tuple(checked_address(one) for one in addresses)


def remote_status(address: str) -> Entry:
    """What is at an address.

    Raises:
        FileNotFoundError: nothing.
        OSError: the store cannot be reached, or does not say.
        CirError: pyarrow is not installed.
    """
    return _status(address, ask("status", *_place(address)))


def listed(address: str) -> list[Entry]:
    """What lies in a folder, by name.

    Raises:
        OSError: the store cannot be reached, does not say, or does not come to an end.
        CirError: pyarrow is not installed.
    """
    return _entries(ask("list", *_place(address), most=None))


def opened_remote(address: str) -> BinaryIO:
    """An object, open for reading from its beginning to its end.

    Raises:
        OSError: see `remote_status`.
        CirError: pyarrow is not installed.
    """
    return cast(BinaryIO, io.BufferedReader(_Raw(StoreFile(*_place(address))), _BUFFER))


def read_remote(address: str, offset: int, size: int | None, most: int) -> bytes:
    """Bytes of an object, and no others of it.

    Args:
        address: of it.
        offset: where they begin.
        size: how many, None for all of it.
        most: how many it may be.

    Raises:
        OSError: see `remote_status`; fewer may be there.
        CirError: pyarrow is not installed, or it is larger than `most`.
    """
    return _bytes(address, most, ask("read", *_place(address), offset=offset, size=size, most=most))


class Ahead:
    """What stores are asked before the answer is needed, `AHEAD` questions at once, in one process.

    Each call says at once what waits for its answer, and raises there what the function of the same name
    raises; answers come in the order of the calls. To be left, as a context, before anything waits no more.
    """

    def __init__(self) -> None:
        self._line = Line()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self._line.__exit__(kind, value, traceback)

    def status(self, address: str) -> Callable[[], Entry]:
        """See `remote_status`."""
        answer = self._asked("status", address)
        return lambda: _status(address, answer())

    def listed(self, address: str, most: int) -> Callable[[], list[Entry] | None]:
        """See `listed`; None where there are more than `most`."""
        answer = self._asked("list", address, most=most)
        return lambda: None if "many" in answer()[0] else _entries(answer())

    def read(self, address: str, offset: int, size: int | None, most: int) -> Callable[[], bytes]:
        """See `read_remote`. Of what has not been waited for few bytes stand in memory."""
        answer = self._asked("read", address, offset=offset, size=size, most=most)
        return lambda: _bytes(address, most, answer())

    def _asked(self, question: str, address: str, **more: Any) -> Callable[[], Answer]:
        try:
            return self._line.ask(question, *_place(address), **more).result
        except (OSError, CirError) as error:  # it is no place that may be asked
            return _raising(error)


def asked_ahead(
    things: Iterable[T], begin: Callable[[T], Callable[[], A] | None]
) -> Iterator[tuple[T, Callable[[], A] | None]]:
    """Things in their order, each with what waits for the answer about it; others are asked about meanwhile.

    Args:
        things: taken a few hundred ahead at most.
        begin: asks about one by means of an `Ahead`; None where nothing is to be asked.
    """
    waiting: deque[tuple[T, Callable[[], A] | None]] = deque()
    asked = 0
    for thing in things:
        waiting.append((thing, begin(thing)))
        asked += waiting[-1][1] is not None
        if asked > AHEAD or len(waiting) > _LOOKED_AT:
            asked -= waiting[0][1] is not None
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _raising(error: Exception) -> Callable[[], Answer]:
    def refuse() -> Answer:
        raise error

    return refuse


def _status(address: str, answer: Answer) -> Entry:
    entry = answer[0]["entry"]
    if entry is None:
        raise FileNotFoundError(2, "there is no such object", address)
    return Entry(*entry)


def _entries(answer: Answer) -> list[Entry]:
    lines = answer[1].splitlines()
    return sorted((Entry(*json.loads(line)) for line in lines), key=lambda one: one.name)


def _bytes(address: str, most: int, answer: Answer) -> bytes:
    head, data = answer
    if "size" in head:
        raise ImageError(f"{address}: {head['size']:,} bytes; images of at most {most:,} are read")
    return bytes(data)


class _Raw(io.RawIOBase):
    """An object as Python's buffers want it, in blocks.

    Who goes on through it, passing over little, has the next blocks asked for beside each other: twice as
    many with each, up to _BLOCKS_AHEAD. Who jumps gets one.
    """

    def __init__(self, file: StoreFile) -> None:
        self._file, self._at, self._size = file, 0, file.size
        self._known: dict[int, bytearray] = {}
        self._asked: deque[int] = deque()
        self._last, self._wanted = -_PASSED_OVER - 1, 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if self._at < 0:
            raise ValueError(f"a place before the beginning: {self._at}")
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._rest(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        # By itself Python asks for 8 kB at a time.
        return b"".join(iter(lambda: self._rest(_FETCHED), b""))

    def _rest(self, most: int) -> bytes:
        """What is behind this place in its block, up to so many bytes; none at the end."""
        if self._at >= self._size:
            return b""
        number, start = divmod(self._at, _FETCHED)
        data = bytes(memoryview(self._block(number))[start : start + most])
        self._at += len(data)
        return data

    def _block(self, number: int) -> bytearray:
        if number not in self._known:
            onward = 0 < number - self._last <= _PASSED_OVER
            self._wanted = min(2 * self._wanted, _BLOCKS_AHEAD) if onward else 1
            while self._asked and self._asked[0] != number:  # what is passed over may be wrong
                with suppress(OSError):
                    self._receive()
            if not self._asked:
                self._ask(number)
            ahead = self._asked[-1] + 1
            for later in range(ahead, min(number + self._wanted, -(-self._size // _FETCHED))):
                self._ask(later)
            data = self._receive()
            self._known = {one: self._known[one] for one in list(self._known)[-1:]} | {number: data}
            self._last = number
        return self._known[number]

    def _ask(self, number: int) -> None:
        start = number * _FETCHED
        self._file.ask(min(_FETCHED, self._size - start), start)
        self._asked.append(number)

    def _receive(self) -> bytearray:
        self._asked.popleft()
        return self._file.receive()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _place(address: str) -> tuple[str, str]:
    """The store of an address, and the path of an object in it."""
    if address != _spelled(address):
        raise PermissionError(13, "expected s3://bucket/photo.jpg, without keys and options", address)
    if _allowed is not None and not any(f"{address}/".startswith(f"{one}/") for one in _allowed):
        raise PermissionError(13, "this process reads nothing from there", address)
    require(f"reading {address}", "pyarrow", error=ImageError)
    store, _, key = address.removeprefix("s3://").partition("/")
    return store, unquote(key)


def _spelled(address: str) -> str | None:
    try:
        return checked_address(address)
    except UsageError:
        return None
