"""What stands before every request: names, origins, keys, limits; and after it: headers, metrics, the log."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from cir_infer.console.printing import printable
from cir_infer.errors import CirError
from cir_infer.serving.connections import AT_ONCE, LARGEST_HEAD, WIRE, Wire
from cir_infer.serving.keys import Keys
from cir_infer.serving.metrics import Metrics
from cir_infer.serving.problems import MEDIA_TYPE, Problem, busy, problem_of
from cir_infer.serving.settings import Settings

__all__ = ["Guard", "refusals"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = dict[bytes, bytes]

_log = logging.getLogger("cir_infer.serving")
_access = logging.getLogger("cir_infer.serving.access")

_OPEN = ("/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico")
"""Paths that need no key, with /assets/: they tell nothing of the gallery."""
_QUERIES = (
    *("/v1/search", "/v1/search/batch", "/v1/search/vectors", "/v1/explain"),
    *("/v1/shard/search", "/v1/shard/items"),
)
_CHANGES = ("POST", "PUT", "PATCH", "DELETE")
_METHODS = (*_CHANGES, "GET")
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d*)?")
"""An address or a name, and a port."""
_SINGLE = frozenset({b"host", b"origin", b"authorization", b"content-type", b"content-encoding", b"expect"})
"""Headers that decide something, of which a request has one."""
_WATCHED = ("/healthz", "/readyz", "/metrics")
"""Of whoever watches an overloaded service, and has to see that it lives."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"geolocation=(), microphone=(), payment=(), usb=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
]
_NAMES = frozenset(name for name, _ in _HEADERS)
_LINES = b"".join(b"%b: %b\r\n" % header for header in _HEADERS)
_REFUSED = "cache-control: no-store\r\ncross-origin-resource-policy: same-origin\r\n"
"""Of an answer to no other site's page, see `_Exchange._own`."""
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type"),
    (b"access-control-max-age", b"600"),
]


def refusals(method: str, path: str) -> tuple[str, ...]:
    """The problems that a request may meet before it comes to a route, by the last part of their type."""
    found = ["malformed-request", "misdirected", "head-too-large"]
    if not _is_open(path):
        found.append("unauthorized")
    if path not in _WATCHED:
        found += ["too-many-requests", "overloaded"]
    if method in _CHANGES:
        found.append("forbidden")
    return tuple(found)


class Guard:
    """The outermost layer of the application.

    Args:
        app: what answers requests that pass.
        settings: the service's.
        keys: that are accepted; None where none is asked for.
        metrics: counts.
        check_room: raises the problem where a query would find no room. It is asked before a body is read,
            and where the connection lets us before there is a task for the request, so that what is refused
            costs as little as it can; the service asks again.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        keys: Keys | None,
        metrics: Metrics,
        check_room: Callable[[], None],
    ) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._check_room = check_room
        self._open = 0
        self._by_whom: Counter[str] = Counter()
        own = {"localhost", socket.gethostname().lower(), settings.host.lower()}
        self._hosts = own | {name.lower() for name in settings.allow_hosts}
        self._origins = {origin.encode() for origin in settings.allow_origins}
        self.keeps_asked = settings.log_queries
        self._run, self._number = secrets.token_hex(4), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def refuse(
        self, method: str, address: bytes, headers: list[tuple[bytes, bytes]], client: Any
    ) -> tuple[int, bytes, bytes] | None:
        """See `connections.Refuse`: a query that would be let in and finds no room.

        Whatever else would be said of a request, that a key is missing for instance, goes the long way.
        """
        if method != "POST":
            return None
        path = address.partition(b"?")[0].decode("latin-1")
        if path not in _QUERIES:
            return None
        begun = time.perf_counter()
        try:
            self._check_room()
            return None
        except Problem as problem:
            refused = problem
        named = dict(headers)
        if b"origin" in named:  # of a page, whose browser has to be told more
            return None
        who: str = client[0] if client else "-"
        try:
            who = self.admit({"headers": headers, "method": method, "path": path}, named, who)
        except Problem:
            return None
        number = self.next_id()
        told = _told(refused, number)
        seconds = time.perf_counter() - begun
        self._metrics.answered(path, method, refused.status, seconds)
        self._metrics.refused(refused.kind)
        if self._settings.access_log:
            self._log(path, method, refused.status, seconds, who, number)
        return told

    def unreadable(self, why: str) -> tuple[int, bytes, bytes]:
        """See `connections.Unreadable`."""
        return _told(Problem("malformed-request", why), self.next_id())

    # ---- what an exchange asks

    def admit(self, scope: Scope, headers: Headers, who: str) -> str:
        """Who asks, as the log names it: by the key if there are keys, or else as `who` says.

        Raises:
            Problem: the request is refused.
        """
        if sum(map(len, itertools.chain.from_iterable(scope["headers"]))) > LARGEST_HEAD:
            raise Problem("head-too-large", f"the head has more than {LARGEST_HEAD:,} bytes")
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # What stands before us may have read the other one (RFC 9112, 6.3). httptools refuses these.
            close = {"Connection": "close"}
            raise Problem(
                "malformed-request", "expected Content-Length or Transfer-Encoding, not both", close
            )
        if len(headers) != len(scope["headers"]):
            twice = Counter(name for name, _ in scope["headers"] if name in _SINGLE)
            repeated = next((name.decode() for name, count in twice.items() if count > 1), None)
            if repeated is not None:
                # Which of them counts is not the same for all that stand between (RFC 9112, 3.2).
                raise Problem("malformed-request", f"the header {repeated} is there twice; expected one")
        self._check_host(headers.get(b"host", b""))
        self._check_origin(scope["method"], headers)
        if self._keys is not None and not _is_open(scope["path"]):
            name = self._keys.name_of(headers.get(b"authorization"))
            if name is None:
                raise Problem(
                    "unauthorized",
                    "send the header `Authorization: Bearer KEY` with a key of this service",
                    {"WWW-Authenticate": "Bearer"},
                )
            who = f"key:{name}"
        return who

    def next_id(self) -> str:
        """By what the log knows a request: another in every process, and no secret."""
        return f"{self._run}{next(self._number):06x}"

    def begin(self, who: str, method: str, path: str) -> None:
        """Count a request in.

        Raises:
            Problem: there are too many.
        """
        if path in _WATCHED:
            pass
        elif self._open >= self._settings.concurrency:
            raise busy("too many requests at this time; try again")
        elif self._by_whom[who] >= self._settings.per_key:
            raise Problem(
                "too-many-requests",
                f"{self._settings.per_key} requests of yours are being answered; wait for one of them",
                {"Retry-After": "1"},
            )
        if method == "POST" and path in _QUERIES:
            self._check_room()
        self._open += 1
        self._by_whom[who] += 1
        self._metrics.level(self._metrics.open, self._open)

    def end(self, who: str) -> None:
        """Count a request out."""
        self._open -= 1
        self._by_whom[who] -= 1
        if not self._by_whom[who]:
            del self._by_whom[who]
        self._metrics.level(self._metrics.open, self._open)

    def allowed_origin(self, headers: Headers) -> bytes | None:
        """The origin of another site's page that may read the answer."""
        origin = headers.get(b"origin")
        return origin if origin is not None and origin in self._origins else None

    def told(self, exchange: _Exchange) -> None:
        """Count an answer, and log it."""
        path: str = exchange.scope["path"]  # a query that is refused early has met no route yet
        route = getattr(exchange.scope.get("route"), "path", path if path in _QUERIES else "other")
        method = exchange.scope["method"] if exchange.scope["method"] in _METHODS else "other"
        asked, where = "", route
        if self._settings.log_queries:
            asked, where = exchange.scope.get("state", {}).get("asked", ""), path
        seconds = time.perf_counter() - exchange.begun
        self._metrics.answered(route, method, exchange.status, seconds)
        if exchange.problem is not None and exchange.status in (401, 403, 413, 421, 429, 503):
            self._metrics.refused(exchange.problem)
        if self._settings.access_log and route not in _WATCHED:
            self._log(where, method, exchange.status, seconds, exchange.who, exchange.id, asked)

    def _log(
        self, where: str, method: str, status: int, seconds: float, who: str, number: str, asked: str = ""
    ) -> None:
        _access.info(
            "%s %s %s %d %.1fms %s%s",
            *(who, method, printable(where[:500]), status, 1000 * seconds, number),
            f" {printable(asked[:1000])}" if asked else "",
        )

    def _check_host(self, host: bytes) -> None:
        """A page elsewhere whose name leads to this address may not ask (DNS rebinding)."""
        if self._keys is not None or "*" in self._hosts:
            return
        name = host.decode("latin-1").lower()
        known = _HOST.fullmatch(name)
        name = name if known is None else known[1] or known[2]
        if name in self._hosts:
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise Problem(
                "misdirected",
                f"this service is not known as {printable(name[:80])!r}; if it should be, start it with "
                "--allow-host",
            ) from None

    def _check_origin(self, method: str, headers: Headers) -> None:
        """A page of another site may not change or ask anything with its reader's hands."""
        origin = headers.get(b"origin")
        if origin is None or method not in _CHANGES or origin in self._origins:
            return
        if origin.partition(b"://")[2] != headers.get(b"host"):
            raise Problem("forbidden", "pages of other sites may not use this service; see --allow-origin")


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self.receive, self._send = guard, scope, receive, send
        self.begun = time.perf_counter()
        self.id = guard.next_id()
        self.status, self.started = 499, False
        client = scope.get("client")
        self.who: str = client[0] if client else "-"  # also of those whose key is none
        self.problem: str | None = None
        self.origin: bytes | None = None
        self._start: Message | None = None  # held until it is known whether the body is all there
        self._wire: Wire | None = scope.get("extensions", {}).get(WIRE)
        if self._wire is not None:
            scope["extensions"][AT_ONCE] = self.answer_at_once
        # Routes see the path as it was sent: a slash inside an id is %2F there and divides nothing.
        scope["path"] = scope.get("raw_path", scope["path"].encode()).partition(b"?")[0].decode("latin-1")
        self.headers: Headers = dict(scope["headers"])
        # A body that was announced and not asked for. What comes next may be it, or another request, so the
        # answer is the connection's last.
        self._unasked = b"expect" in self.headers
        state = scope.setdefault("state", {})
        state["request_id"], state["head"], state["keep_asked"] = self.id, self.headers, guard.keeps_asked

    async def run(self) -> None:
        try:
            self.origin = self.guard.allowed_origin(self.headers)
            if self.origin is not None and self.scope["method"] == "OPTIONS":
                await self._answer(204, _PREFLIGHT, b"")
                return
            self.who = self.guard.admit(self.scope, self.headers, self.who)
            self.guard.begin(self.who, self.scope["method"], self.scope["path"])
            try:
                receive = self._asking if self._unasked else self.receive
                await self.guard._app(self.scope, receive, self.send)
            finally:
                self.guard.end(self.who)
        except Exception as error:
            told = problem_of(error)
            if told.status >= 500 and not isinstance(error, Problem):
                trace = None if isinstance(error, CirError) else error
                _log.error("request %s failed: %s", self.id, error, exc_info=trace)
            if not self.started:
                with contextlib.suppress(Problem):
                    await self._refuse(told)
        finally:
            self.guard.told(self)

    async def _asking(self) -> Message:
        self._unasked = False
        return await self.receive()

    async def send(self, message: Message) -> None:
        """Passes the application's answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status, self._start = message["status"], message
            return
        start, self._start, self.started = self._start, None, True
        try:
            if start is not None:
                headers: list[tuple[bytes, bytes]] = list(start.get("headers", []))
                if not message.get("more_body", False) and self.answer_at_once(
                    start["status"], headers, message.get("body", b"")
                ):
                    return
                have = {name for name, _ in headers}
                headers += self._own(have)
                headers += [(name, value) for name, value in _HEADERS if name not in have]
                await self._send({**start, "headers": headers})
            await self._send(message)
        except Exception as error:
            # What came was no HTTP after all, of which uvicorn told the client, or nobody listens any more.
            raise Problem("cancelled", "the connection was lost before the answer was sent") from error

    def _own(self, have: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        """The headers of this answer alone."""
        more = [(b"x-request-id", self.id.encode())]
        if b"cache-control" not in have:
            more.append((b"cache-control", b"no-store"))
        if self._unasked and b"connection" not in have:
            more.append((b"connection", b"close"))
        if self.origin is not None:
            more += [(b"access-control-allow-origin", self.origin), (b"vary", b"Origin")]
        else:
            more.append((b"cross-origin-resource-policy", b"same-origin"))
        return more

    def answer_at_once(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send an answer that is all there in one write, where the connection does that; see `AT_ONCE`."""
        have = {name for name, _ in headers}
        if self._wire is None or self._unasked or b"content-length" not in have or b"connection" in have:
            return False
        if not _NAMES.isdisjoint(have):
            return False
        told = [*headers, *self._own(have)]
        lines = b"".join([b"%b: %b\r\n" % header for header in told])
        if lines.count(b"\r") != len(told) or lines.count(b"\n") != len(told):
            return False  # a header that is two: uvicorn refuses it
        if not self._wire.answer(status, _LINES + lines, body):
            return False
        self.status = status
        self.started = True
        return True

    async def _refuse(self, problem: Problem) -> None:
        self.problem = problem.kind
        headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await self._answer(
            problem.status, [*headers, (b"content-type", MEDIA_TYPE.encode())], problem.body(self.id)
        )

    async def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        start = {"type": "http.response.start", "status": status, "headers": [*headers, length]}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _told(problem: Problem, number: str) -> tuple[int, bytes, bytes]:
    """A problem as the connection sends it, see `connections.Refuse`."""
    body = problem.body(number)
    given = "".join(f"{name.lower()}: {value}\r\n" for name, value in problem.headers.items())
    lines = (
        f"{given}content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {number}\r\n{_REFUSED}"
    )
    return problem.status, _LINES + lines.encode(), body


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith("/assets/")
