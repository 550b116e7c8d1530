"""Connections whose requests have to arrive: neither a byte a minute nor a head without end keeps a place.

HTTP is read by httptools, Node's parser, for a quarter of what it costs h11, which is Python. h11 takes its
place where there is no httptools for a machine, and then everything goes the long way: an answer in two
writes, a refusal as a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from cir_infer.extras import is_installed
from cir_infer.serving.deadlines import Deadline, after

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Protocol
else:
    _Protocol = object  # parts of a protocol; `make_protocol` puts them before uvicorn's

__all__ = ["AT_ONCE", "LARGEST_HEAD", "WIRE", "Refuse", "Unreadable", "Wire", "make_protocol"]

Headers: TypeAlias = list[tuple[bytes, bytes]]
Refuse: TypeAlias = Callable[[str, bytes, Headers, Any], "tuple[int, bytes, bytes] | None"]
"""Whether a request is refused by its head: method, address, headers and client, to status, the lines of the
answer's head and its body; None where it has to be looked at."""

Unreadable: TypeAlias = Callable[[str], "tuple[int, bytes, bytes]"]
"""The answer to what is no HTTP, as of `Refuse`; it is told why."""

AT_ONCE = "cir_infer.at_once"
"""The key, among the extensions of a request's scope, of what sends an answer that is all there: of status,
headers and body to whether it was sent; else it has to be sent as ASGI says."""

WIRE = "cir_infer.wire"
"""The key of a request's `Wire` among the extensions of its scope, where it has one."""

LARGEST_HEAD = 32 << 10
"""Bytes. What is larger gets 431 if a parser took it at all; parsers give up somewhat later."""
_MOST_WAITING = 16


class Wire:
    """What a request's connection does besides ASGI: tell that it is lost, and send a whole answer at once.

    ASGI tells a loss only to who waits for it, which takes a task for each request; and a head and its body
    are two writes there, of which each wakes the client.
    """

    __slots__ = ("_connection", "_cycle")

    def __init__(self, connection: Any, cycle: Any) -> None:
        self._connection, self._cycle = connection, cycle

    def watch(self, lost: Callable[[], None]) -> None:
        """Have something called when the connection is lost, now if it is lost already."""
        self._connection.when_lost = lost  # requests of one connection are answered one after the other
        if self._connection.transport.is_closing():
            lost()

    def unwatch(self) -> None:
        """The end of that."""
        self._connection.when_lost = None

    def body(self) -> bytes | None:
        """The request's body; None where some of it has still to come, or to be asked for."""
        cycle = self._cycle
        if cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.flow.resume_reading()  # so that a loss is noticed
        return body

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """Send an answer; False where it has to be sent as ASGI says.

        Args:
            status: of the answer.
            lines: its headers with their length, each ending in CRLF, and none of `Connection` among them.
            body: all of it.
        """
        cycle = self._cycle
        if cycle.response_started or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        if not cycle.disconnected:
            self._connection.write_answer(status, lines, body, cycle.keep_alive)
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()
        return True


class _Timers:
    """An event loop as uvicorn's protocols use it, whose timers cost little: each request has one."""

    def __init__(self, loop: Any) -> None:
        self._loop, self.create_task = loop, loop.create_task

    def call_later(self, seconds: float, call: Callable[[], None]) -> Deadline:
        return after(self._loop, seconds, call)


class _Timed(_Protocol):
    """Part of a protocol of uvicorn's: closes a connection whose request's head does not come in time."""

    seconds: float
    _head: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop: Any = _Timers(self.loop)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._busy():
            self._stop_waiting()
        elif self._head is None and self.timeout_keep_alive_task is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        """Whether a request's head is here and its answer is not complete."""
        cycle = getattr(self, "cycle", None)
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        self._head = self.loop.call_later(self.seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if not self._busy() and not self.transport.is_closing():
            self.transport.close()


class _Direct(_Protocol):
    """Part of uvicorn's protocol over httptools: gives each request a `Wire`, refuses some by their head."""

    refuse: Refuse | None = None
    unreadable: Unreadable | None = None
    when_lost: Callable[[], None] | None = None
    status_lines: dict[int, bytes]
    scope: Any
    _stop_waiting: Callable[[], None]  # of `_Timed`
    _refused = False  # the request that is being read
    _in_body = False

    def on_message_begin(self) -> None:
        # A refusal is over before the next request behind it in the same bytes begins: that one has the time
        # of a head, see `_Timed`, and not of a connection on which nothing comes.
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._refused = False
        before: Any = self.cycle
        if (
            self.refuse is not None
            and (before is None or before.response_complete)
            and self._refuse(self.refuse)
        ):
            self._in_body = True
            return
        super().on_headers_complete()
        self._in_body = True
        if self.cycle is not before:
            self.scope["extensions"] = {WIRE: Wire(self, self.cycle)}

    def _refuse(self, refuse: Refuse) -> bool:
        """Answer at once that there is no room. The body, which may be on its way, is dropped as it comes.

        Who does not read goes the long way, which waits for that, and so does whoever would have to be told
        what becomes of the connection.
        """
        parser = self.parser
        if self.flow.write_paused or self.expect_100_continue or parser.get_http_version() != "1.1":
            return False
        if not parser.should_keep_alive() or parser.should_upgrade():
            return False
        refused = refuse(parser.get_method().decode("ascii"), self.url, self.headers, self.client)
        if refused is None:
            return False
        status, lines, content = refused
        self.write_answer(status, lines, content, keep_alive=True)
        self._refused = True
        return True

    def write_answer(self, status: int, lines: bytes, body: bytes, keep_alive: bool) -> None:
        head = [self.status_lines[status]]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        head += (lines, b"\r\n" if keep_alive else b"connection: close\r\n\r\n", body)
        self.transport.write(b"".join(head))

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if not self._refused:
            super().on_message_complete()
            return
        self.server_state.total_requests += 1
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def send_400_response(self, msg: str) -> None:
        """Tell what is no HTTP; in the body of a request that was answered, end the connection alone.

        A proxy would take what is said there for the answer to somebody else's request.
        """
        answered = self._refused or (self.cycle is not None and self.cycle.response_complete)
        if not (self._in_body and answered):
            if self.unreadable is None:
                super().send_400_response(msg)
                return
            self.write_answer(*self.unreadable(msg), keep_alive=False)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.when_lost is not None:
            self.when_lost()
            self.when_lost = None


class _Bounded(_Protocol):
    """Part of uvicorn's protocol over httptools: limits, which by itself it has none of.

    It would hold whatever is sent as a head, and each request of a client that does not wait for answers.
    """

    _size = 0  # of the head so far
    _silent = 0  # bytes that the parser took and said nothing of
    _in_head = False

    def data_received(self, data: bytes) -> None:
        self._silent += len(data)
        super().data_received(data)
        if self._silent > LARGEST_HEAD and not self.transport.is_closing():
            # A name or a value that does not end.
            self.send_400_response("The head is too large.")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MOST_WAITING:
            raise ValueError("too many requests wait for answers on one connection")
        self._size = self._silent = 0
        self._in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._take(len(url), LARGEST_HEAD)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        kept = self._in_head and self._size <= LARGEST_HEAD
        self._take(len(name) + len(value), 8 * LARGEST_HEAD)
        # The one that is too much is kept, so that the Guard sees it and says so. What comes behind a body in
        # chunks looks like a header and is none.
        if kept:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        super().on_body(body)

    def _take(self, count: int, most: int) -> None:
        self._silent = 0
        self._size += count
        if self._size > most:
            raise ValueError("the head is too large")


def make_protocol(
    seconds: float,
    refuse: Refuse | None = None,
    unreadable: Unreadable | None = None,
    name: str | None = None,
) -> type[Any]:
    """A protocol for uvicorn.

    Args:
        seconds: it waits for the head of a request.
        refuse: see `Refuse`.
        unreadable: see `Unreadable`; None, or h11, says it in uvicorn's words.
        name: of the parser, "httptools" or "h11"; None takes the first that is installed.
    """
    if name is None:
        name = "httptools" if is_installed("httptools") else "h11"
    if name == "h11":
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return type("Protocol", (_Timed, H11Protocol), {"seconds": seconds})
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

    own = {
        "seconds": seconds,
        "refuse": None if refuse is None else staticmethod(refuse),
        "unreadable": None if unreadable is None else staticmethod(unreadable),
        "status_lines": STATUS_LINE,
    }
    return type("Protocol", (_Timed, _Bounded, _Direct, HttpToolsProtocol), own)
