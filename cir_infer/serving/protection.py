"""What stands before every request: names, origins, keys, limits; and after it: headers, metrics, the log."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from cir_infer.console.printing import printable
from cir_infer.errors import CirError
from cir_infer.serving.connections import LARGEST_HEAD
from cir_infer.serving.keys import Keys
from cir_infer.serving.metrics import Metrics
from cir_infer.serving.problems import MEDIA_TYPE, Problem, busy, problem_of
from cir_infer.serving.settings import Settings

__all__ = ["Guard"]

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
    *("/v1/shard/search", "/v1/shard/item"),
)
_CHANGES = ("POST", "PUT", "PATCH", "DELETE")
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
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type"),
    (b"access-control-max-age", b"600"),
]


class Guard:
    """The outermost layer of the application.

    Args:
        app: what answers requests that pass.
        settings: the service's.
        keys: that are accepted; None where none is asked for.
        metrics: counts.
        check_room: raises the problem where a query would find no room. It is asked before a body is read,
            so that what is refused costs as little as it can; the service asks again.
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
        self._run, self._number = secrets.token_hex(4), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    # ---- what an exchange asks

    def admit(self, scope: Scope, headers: Headers, who: str) -> str:
        """Who asks, as the log names it: by the key if there are keys, or else as `who` says.

        Raises:
            Problem: the request is refused.
        """
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEAD:
            raise Problem("head-too-large", f"the head has more than {LARGEST_HEAD:,} bytes")
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
        if path in ("/healthz", "/readyz", "/metrics"):
            pass  # whoever watches an overloaded service has to see that it lives
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
        self._metrics.open.set(self._open)

    def end(self, who: str) -> None:
        """Count a request out."""
        self._open -= 1
        self._by_whom[who] -= 1
        if not self._by_whom[who]:
            del self._by_whom[who]
        self._metrics.open.set(self._open)

    def allowed_origin(self, headers: Headers) -> bytes | None:
        """The origin of another site's page that may read the answer."""
        origin = headers.get(b"origin")
        return origin if origin is not None and origin in self._origins else None

    def told(self, exchange: _Exchange) -> None:
        """Count an answer, and log it."""
        path: str = exchange.scope["path"]  # a query that is refused early has met no route yet
        route = getattr(exchange.scope.get("route"), "path", path if path in _QUERIES else "other")
        method = exchange.scope["method"] if exchange.scope["method"] in (*_CHANGES, "GET") else "other"
        seconds = time.perf_counter() - exchange.begun
        self._metrics.answered(route, method, exchange.status, seconds)
        if exchange.problem is not None and exchange.status in (401, 403, 413, 421, 429, 503):
            self._metrics.refusals.labels(exchange.problem).inc()
        if not self._settings.access_log or route in ("/healthz", "/readyz", "/metrics"):
            return
        asked = exchange.scope.get("state", {}).get("asked", "") if self._settings.log_queries else ""
        where = path if self._settings.log_queries else route
        _access.info(
            "%s %s %s %d %.1fms %s%s",
            *(exchange.who, method, printable(where[:500]), exchange.status, 1000 * seconds, exchange.id),
            f" {printable(asked[:1000])}" if asked else "",
        )

    def _check_host(self, host: bytes) -> None:
        """A page elsewhere whose name leads to this address may not ask (DNS rebinding)."""
        if self._keys is not None or "*" in self._hosts:
            return
        name = host.decode("latin-1").lower()
        name = name.partition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
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
        # Routes see the path as it was sent: a slash inside an id is %2F there and divides nothing.
        scope["path"] = scope.get("raw_path", scope["path"].encode()).partition(b"?")[0].decode("latin-1")
        scope.setdefault("state", {})["request_id"] = self.id

    async def run(self) -> None:
        headers: Headers = dict(self.scope["headers"])
        try:
            self.origin = self.guard.allowed_origin(headers)
            if self.origin is not None and self.scope["method"] == "OPTIONS":
                await self._answer(204, _PREFLIGHT, b"")
                return
            self.who = self.guard.admit(self.scope, headers, self.who)
            self.guard.begin(self.who, self.scope["method"], self.scope["path"])
            try:
                await self.guard._app(self.scope, self.receive, self.send)
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

    async def send(self, message: Message) -> None:
        """Passes the application's answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            given = list(message.get("headers", []))
            have = {name for name, _ in given}
            more = [(name, value) for name, value in _HEADERS if name not in have]
            more.append((b"x-request-id", self.id.encode()))
            if b"cache-control" not in have:
                more.append((b"cache-control", b"no-store"))
            if self.origin is not None:
                more += [(b"access-control-allow-origin", self.origin), (b"vary", b"Origin")]
            else:
                more.append((b"cross-origin-resource-policy", b"same-origin"))
            message = {**message, "headers": given + more}
        try:
            await self._send(message)
        except Exception as error:
            # What came was no HTTP after all, of which uvicorn told the client, or nobody listens any more.
            raise Problem("cancelled", "the connection was lost before the answer was sent") from error

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


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith("/assets/")
