"""What every route does: read the body, answer in time, notice that a client has gone, tell times."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from cir_infer.errors import CirError
from cir_infer.serving.bodies import media_type, read_body
from cir_infer.serving.problems import MEDIA_TYPE, Problem, problem_of
from cir_infer.serving.service import Service

if TYPE_CHECKING:
    from fastapi import Request, Response

__all__ = ["body_of", "finished", "id_of", "json_answer", "parameters", "problem_answer", "server_timing"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


async def body_of(request: Request, service: Service, *kinds: str) -> tuple[str, bytes]:
    """Media type and body of a request.

    Raises:
        Problem: it has another type, is too large or too slow.
    """
    kind = media_type(request)
    if not any(kind == wanted or (wanted.endswith("/") and kind.startswith(wanted)) for wanted in kinds):
        names = ", ".join(f"{name}*" if name.endswith("/") else name for name in kinds)
        raise Problem("unsupported-media-type", f"the body is {kind[:80] or 'of no type'}; expected {names}")
    settings = service.settings
    return kind, await read_body(request, settings.max_upload, settings.read_timeout, service.budget)


async def finished(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """What some work gives, unless the client goes away or it takes too long; then it is cancelled.

    Raises:
        Problem: one of the two.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Problem("cancelled", "the client went away")
        raise Problem("timeout", f"there was no answer within {seconds:g} seconds")
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, of plain values and the types of `schemas`."""
    from fastapi.responses import Response

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=vars)
    return Response(text.encode(), status, dict(headers or {}), media_type="application/json")


async def problem_answer(request: Request, error: Exception) -> Response:
    """An error as an answer; FastAPI calls it."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import Response
    from starlette.exceptions import HTTPException

    if isinstance(error, HTTPException):
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "malformed-request")
        told = Problem(kind, "see /openapi.json for what there is", dict(error.headers or {}))
    elif isinstance(error, RequestValidationError):
        entry = error.errors()[0]
        told = Problem("invalid-argument", f"{entry['loc'][-1]}: {entry['msg']}"[:300])
    else:
        told = problem_of(error)
        if told.status >= 500 and isinstance(error, CirError):
            _log.error("request %s: %s", request.state.request_id, error)
    request.state.problem = told.kind
    body = told.body(request.state.request_id)
    return Response(body, told.status, told.headers, media_type=MEDIA_TYPE)


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
    timing = {name: round(1000 * seconds, 2) for name, seconds in stages.items()}
    timing["total"] = round(1000 * (time.perf_counter() - begun), 2)
    return timing, {"Server-Timing": ", ".join(f"{name};dur={value}" for name, value in timing.items())}
