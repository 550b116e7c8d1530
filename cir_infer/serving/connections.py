"""Connections whose requests have to arrive: neither a byte a minute nor a head without end keeps a place.

HTTP is read by httptools, Node's parser, for a quarter of what it costs h11, which is Python. h11 takes its
place where there is no httptools for a machine.
"""

from __future__ import annotations

import importlib.util
from typing import Any

__all__ = ["LARGEST_HEAD", "make_protocol"]

LARGEST_HEAD = 32 << 10
"""Bytes. What is larger gets 431 if a parser took it at all; parsers give up somewhat later."""
_MOST_WAITING = 16


class _Timed:
    """Part of a protocol of uvicorn's: closes a connection whose request's head does not come in time."""

    seconds: float
    _head: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._head is None and not self._busy():
            self._wait()
        super().data_received(data)  # type: ignore[misc]
        if self._busy():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)  # type: ignore[misc]

    def _busy(self) -> bool:
        """Whether a request's head is here and its answer is not complete."""
        cycle = getattr(self, "cycle", None)
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        loop: Any = getattr(self, "loop")  # noqa: B009 - the other class has it
        self._head = loop.call_later(self.seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        transport: Any = getattr(self, "transport")  # noqa: B009
        if not self._busy() and not transport.is_closing():
            transport.close()


class _Bounded:
    """Part of uvicorn's protocol over httptools: limits, which by itself it has none of.

    It would hold whatever is sent as a head, and each request of a client that does not wait for answers.
    """

    pipeline: Any
    _size = 0  # of the head so far
    _silent = 0  # bytes that the parser took and said nothing of
    _in_head = False

    def data_received(self, data: bytes) -> None:
        self._silent += len(data)
        super().data_received(data)  # type: ignore[misc]
        transport: Any = getattr(self, "transport")  # noqa: B009 - the other class has it
        if self._silent > LARGEST_HEAD and not transport.is_closing():
            # A name or a value that does not end.
            getattr(self, "send_400_response")("The head is too large.")  # noqa: B009

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MOST_WAITING:
            raise ValueError("too many requests wait for answers on one connection")
        self._size = self._silent = 0
        self._in_head = True
        super().on_message_begin()  # type: ignore[misc]

    def on_url(self, url: bytes) -> None:
        self._take(len(url), LARGEST_HEAD)
        super().on_url(url)  # type: ignore[misc]

    def on_header(self, name: bytes, value: bytes) -> None:
        kept = self._in_head and self._size <= LARGEST_HEAD
        self._take(len(name) + len(value), 8 * LARGEST_HEAD)
        # The one that is too much is kept, so that the Guard sees it and says so. What comes behind a body in
        # chunks looks like a header and is none.
        if kept:
            super().on_header(name, value)  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        super().on_body(body)  # type: ignore[misc]

    def _take(self, count: int, most: int) -> None:
        self._silent = 0
        self._size += count
        if self._size > most:
            raise ValueError("the head is too large")


def make_protocol(seconds: float, name: str | None = None) -> type[Any]:
    """A protocol for uvicorn.

    Args:
        seconds: it waits for the head of a request.
        name: of the parser, "httptools" or "h11"; None takes the first that is installed.
    """
    if name is None:
        name = "httptools" if importlib.util.find_spec("httptools") else "h11"
    if name == "h11":
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return type("Protocol", (_Timed, H11Protocol), {"seconds": seconds})
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    return type("Protocol", (_Timed, _Bounded, HttpToolsProtocol), {"seconds": seconds})
