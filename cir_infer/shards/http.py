"""A shard behind `cir-serve --shard`, asked with what comes with Python; connections are kept."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cir_infer.errors import CirError, ShardError, UsageError, shown
from cir_infer.gallery.filters.filters import Where
from cir_infer.inputs.arguments import checked_seconds
from cir_infer.processes.fork import PerProcess
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import NO_REFERENCES, Found, Held, References
from cir_infer.shards.shard import About
from cir_infer.shards.wire import held_in_parts, read_about, read_found, read_held, told_question

__all__ = ["HttpShard"]

T = TypeVar("T")

_KEPT = 32
_MOST_BYTES = 256 << 20
_MOST_TOLD = 2000
"""Characters of what a shard says is wrong with the question."""
_BUSY = (429, 500, 502, 503, 504)
"""Answers after which another replica, or the same one later, may answer."""


class HttpShard:
    """A shard that another process or machine serves. Threads may share one.

    Args:
        url: of `cir-serve --shard`, e.g. "http://10.0.0.7:8080".
        key: an API key, where it asks for one.
        timeout: seconds for a call where the searcher has no deadline.

    Raises:
        UsageError: the URL is none, or the key.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30.0) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"the address of a shard is {shown(url)} ({shown(error)})") from error
        if parts.scheme not in ("http", "https") or not self._host or parts.path not in ("", "/"):
            raise UsageError(
                f"the address of a shard is {shown(url)}; expected one such as http://10.0.0.7:8080"
            )
        self._timeout = checked_seconds("timeout", timeout, None)
        self._made_of = url, key, timeout
        self._secure = parts.scheme == "https"
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            if not isinstance(key, str) or not key.isascii() or not key.isprintable():
                raise UsageError("an API key has letters, digits and signs of ASCII alone")
            self._headers["Authorization"] = f"Bearer {key}"
        # Connections that wait for the next call; each step changes the list by one call of C.
        self._idle: PerProcess[list[http.client.HTTPConnection]] = PerProcess(list)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what comes out of pickle, has connections of its own."""
        return HttpShard, self._made_of

    @property
    def place(self) -> str:
        """See `Shard.place`."""
        return self._url

    def about(self, timeout: float | None = None) -> About:
        """See `Shard.about`."""
        body = self._call("GET", "/v1/shard", None, timeout)
        return self._understood(lambda: read_about(body, self._url))

    def search(
        self,
        terms: QueryTerms,
        k: int,
        where: Where | None,
        exclude: Sequence[str],
        references: References = NO_REFERENCES,
        timeout: float | None = None,
    ) -> Found:
        """See `Shard.search`."""
        question = told_question(terms, k, where, exclude, references)
        body = self._call("POST", "/v1/shard/search", question, timeout)
        return self._understood(lambda: read_found(body, terms.queries, len(terms.names), k))

    def held(self, items: Sequence[str], timeout: float | None = None) -> list[Held | None]:
        """See `Shard.held`."""
        return held_in_parts(items, self._first_held, timeout)

    def _first_held(self, items: list[str], timeout: float | None) -> list[Held | None]:
        body = self._call("POST", "/v1/shard/items", json.dumps({"ids": items}).encode(), timeout)
        return self._understood(lambda: read_held(body, len(items)))

    def close(self) -> None:
        """See `Shard.close`."""
        idle = self._idle.drop()
        while idle:
            with suppress(IndexError):  # a call took it
                idle.pop().close()

    # ---- HTTP

    def _understood(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except CirError as error:
            raise ShardError(
                f"{self._url} answered what no shard of this version answers: {error}"
            ) from error

    def _call(self, method: str, path: str, body: bytes | None, timeout: float | None) -> bytes:
        seconds = self._timeout if timeout is None else max(min(timeout, self._timeout), 0.001)
        idle = self._idle.get()
        while True:
            try:
                connection, kept = idle.pop(), True
            except IndexError:
                connection, kept = self._connection(seconds), False
            try:
                status, answer = self._exchange(connection, method, path, body, seconds)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                connection.close()
                if kept:  # it was closed while it waited; nothing here changes anything, so ask once more
                    continue
                raise self._unreachable(error) from error
            except (OSError, http.client.HTTPException, ValueError) as error:  # the last: no name of a host
                connection.close()
                raise self._unreachable(error) from error
            except BaseException:
                connection.close()
                raise
            if len(idle) < _KEPT and connection.sock is not None:
                idle.append(connection)
            else:
                connection.close()
            if status == 200:
                return answer
            raise self._refused(status, answer)

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=seconds)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        seconds: float,
    ) -> tuple[int, bytes]:
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        until = time.monotonic() + seconds
        connection.response_class = partial(_answer, until)  # type: ignore[assignment]
        connection.request(method, path, body, self._headers)
        response = connection.getresponse()
        answer = response.read(_MOST_BYTES + 1)
        if not response.isclosed():  # it would be, had everything been read
            long = len(answer) > _MOST_BYTES
            raise http.client.HTTPException(
                f"its answer has more than {_MOST_BYTES >> 20} MiB" if long else "its answer ends early"
            )
        return response.status, answer

    def _unreachable(self, error: Exception) -> ShardError:
        return ShardError(f"{self._url} cannot be reached ({shown(error)})")

    def _refused(self, status: int, answer: bytes) -> CirError:
        try:
            detail = str(json.loads(answer)["detail"])
        except (ValueError, TypeError, KeyError, RecursionError):
            detail = ""
        if status in _BUSY:
            return ShardError(f"{self._url} answered {status}: {shown(detail, 400)}")
        if status in (401, 403):
            return UsageError(f"{self._url} asks for another API key; give HttpShard(url, key=...)")
        if status in (404, 405):
            return UsageError(f"{self._url} is no shard; start it with `cir-serve --shard`")
        refused = UsageError(detail or f"{self._url} answered {status}")
        return refused if len(detail) <= _MOST_TOLD else UsageError(shown(refused, _MOST_TOLD))


def _answer(until: float, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
    """What reads an answer, all of it until a time."""
    return http.client.HTTPResponse(_Until(sock, until), **options)  # type: ignore[arg-type]


class _Until(io.RawIOBase):
    """What a connection says until a time.

    Its own time-out is for each piece, and there may be any number of them.
    """

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._raw, self._until = sock, sock.makefile("rb", buffering=0), until

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
