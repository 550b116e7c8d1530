"""The page at /: files of this package, each with a tag of its content, and nothing from elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.serving.problems import Problem

__all__ = ["asset", "icon", "index"]

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class _File(NamedTuple):
    content: bytes
    tag: str
    type: str


@cache
def _files() -> dict[str, _File]:
    """Every file of the page by its name; what is not listed here is not there."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.name] = _File(content, hashlib.sha256(content).hexdigest()[:16], _TYPES[path.suffix])
    return found


async def index(request: Any) -> Any:
    """The page."""
    return _answer(request, "index.html")


async def asset(request: Any, name: str) -> Any:
    """A file of the page."""
    return _answer(request, name)


async def icon(request: Any) -> Any:
    """Its icon."""
    return _answer(request, "icon.svg")


def _answer(request: Any, name: str) -> Any:
    from fastapi.responses import Response

    file = _files().get(name)
    if file is None:
        raise Problem("not-found", "see / for the page, /openapi.json for the service")
    headers = {"ETag": f'"{file.tag}"', "Cache-Control": "no-cache"}
    if f'"{file.tag}"' in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, media_type=file.type)
