"""What every route does: read the body, answer in time, notice that a client has gone, tell times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from cir_infer.serving.bodies import media_type, read_body
from cir_infer.serving.connections import AT_ONCE, WIRE, Wire
from cir_infer.serving.ends import Ends
from cir_infer.serving.problems import Problem
from cir_infer.serving.schemas import written
from cir_infer.serving.service import Service

if TYPE_CHECKING:
    from fastapi import Request

__all__ = [
    "IN_TIME",
    "WITH_BODY",
    "Response",
    "body_of",
    "finished",
    "id_of",
    "json_answer",
    "parameters",
    "server_timing",
]

T = TypeVar("T")
IN_TIME = ("timeout",)
"""Problems of what is waited for by `finished`."""
WITH_BODY = ("unsupported-media-type", "request-timeout", "too-large")
"""Problems of `body_of`."""


async def body_of(request: Request, service: Service, *kinds: str) -> tuple[str, bytes]:
    """Media type and body of a request.

    Raises:
        Problem: it has another type, is too large or too slow.
    """
    kind = media_type(request)
    if kind not in kinds and not kind.startswith(tuple(name for name in kinds if name.endswith("/"))):
        names = ", ".join(f"{name}*" if name.endswith("/") else name for name in kinds)
        raise Problem("unsupported-media-type", f"the body is {kind[:80] or 'of no type'}; expected {names}")
    settings = service.settings
    return kind, await read_body(request, settings.max_upload, settings.read_timeout, service.budget)


async def finished(request: Request, work: Awaitable[T], seconds: float) -> T:
    """What some work gives, unless the client goes away or it takes too long; then it is cancelled.

    Raises:
        Problem: one of the two.
    """
    ends = Ends()
    late = Problem("timeout", f"there was no answer within {seconds:g} seconds")
    wire: Wire | None = request.scope.get("extensions", {}).get(WIRE)
    if wire is not None:
        wire.watch(lambda: ends.now(Problem("cancelled", "the client went away")))
        try:
            return await ends.within(seconds, work, late)
        finally:
            wire.unwatch()

    def left(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            ends.now(Problem("cancelled", "the client went away"))

    gone = asyncio.ensure_future(_disconnected(request.receive))
    gone.add_done_callback(left)
    try:
        return await ends.within(seconds, work, late)
    finally:
        gone.cancel()


async def _disconnected(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Response:
    """An answer that is all there, as an ASGI application; Starlette's costs three times as much.

    Args:
        body: of it.
        kind: its media type.
        status: of it.
        headers: more headers, by name in small letters.
    """

    def __init__(
        self, body: bytes, kind: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self._body, self._status = body, status
        self._headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        for name, value in (headers or {}).items():
            self._headers.append((name.encode("latin-1"), value.encode("latin-1")))

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """See the ASGI specification."""
        at_once = scope.get("extensions", {}).get(AT_ONCE)
        if at_once is not None and at_once(self._status, self._headers, self._body):
            return
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, of plain values and the types of `schemas`."""
    return Response(written(value), b"application/json", status, headers)


def id_of(encoded: str) -> str:
    """An item's id from its segment of an address.

    Raises:
        Problem: it is not UTF-8.
    """
    try:
        return unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise Problem("malformed-request", "the id in the address is not UTF-8") from None


def parameters(request: Request, *names: str) -> dict[str, str]:
    """The parameters of an address, each at most once.

    Raises:
        Problem: one is unknown, or there twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise Problem(
                "invalid-argument", f"the parameter {name[:80]!r} is unknown; expected {', '.join(names)}"
            )
        if name in found:
            raise Problem("invalid-argument", f"the parameter {name} is there twice")
        found[name] = value
    return found


def server_timing(stages: Mapping[str, float], begun: float) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds by stage, for the answer and for its `Server-Timing` header.

    Args:
        stages: seconds.
        begun: when the request came, on `time.perf_counter`.
    """
    timing = {name: round(1000 * took, 2) for name, took in stages.items()}
    timing["total"] = round(1000 * (time.perf_counter() - begun), 2)
    return timing, {"server-timing": ", ".join(map("%s;dur=%s".__mod__, timing.items()))}
