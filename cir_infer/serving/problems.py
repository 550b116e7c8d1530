"""Errors as problem documents (RFC 9457), made of the SDK's own; never a traceback, never a path of ours."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cir_infer.errors import (
    CirError,
    GalleryError,
    ImageError,
    ShardError,
    StaleHitError,
    TextError,
    UsageError,
)
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.metadata.metadata import MetadataError

__all__ = ["KINDS", "MEDIA_TYPE", "Kind", "Problem", "hide_folders", "problem_of", "raises"]

F = TypeVar("F", bound=Callable[..., Any])

MEDIA_TYPE = "application/problem+json"
_REQUEST = "urn:cir-infer:request:"


class Kind(NamedTuple):
    """A kind of problem.

    Attributes:
        status: of the answer.
        title: the same for every problem of the kind.
    """

    status: int
    title: str


KINDS = {
    "malformed-request": Kind(400, "The request cannot be read"),
    "unauthorized": Kind(401, "An API key is needed"),
    "forbidden": Kind(403, "This is not allowed here"),
    "not-found": Kind(404, "There is no such thing"),
    "method-not-allowed": Kind(405, "There is no such method here"),
    "request-timeout": Kind(408, "The request took too long to arrive"),
    "empty-gallery": Kind(409, "The gallery is empty"),
    "changed": Kind(409, "What was answered has changed"),
    "too-large": Kind(413, "The request is too large"),
    "unsupported-media-type": Kind(415, "The content has another type than expected"),
    "misdirected": Kind(421, "The service is not known by this name"),
    "invalid-argument": Kind(422, "An argument is not what was expected"),
    "unusable-image": Kind(422, "The image cannot be used"),
    "unusable-text": Kind(422, "The text cannot be used"),
    "too-many-requests": Kind(429, "Too many requests at a time"),
    "head-too-large": Kind(431, "The head of the request is too large"),
    "cancelled": Kind(499, "The client went away"),
    "internal": Kind(500, "The service failed"),
    "overloaded": Kind(503, "The service is busy"),
    "timeout": Kind(504, "The answer took too long"),
}
"""Every problem that the service answers with, by the last part of its `type`."""


def raises(*kinds: str) -> Callable[[F], F]:
    """Say of a route's function which problems it answers with: the OpenAPI document is made of that.

    Args:
        kinds: keys of `KINDS`, beside those that any request may meet (`protection.refusals`), faults of
            ours, and clients that went away.
    """

    def said(function: F) -> F:
        function.__dict__["problems"] = kinds
        return function

    return said


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """A request that is not answered, and why.

    Args:
        kind: a key of `KINDS`.
        detail: what was found, what was expected and what to do.
        headers: of the answer.
        more: further members of the document.
    """

    def __init__(self, kind: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers, self.more = kind, detail, headers or {}, more
        self.status = KINDS[kind].status

    def document(self, request: str | None = None) -> dict[str, Any]:
        """The document, as plain values.

        Args:
            request: the request's id, by which the log knows it.
        """
        return {
            "type": f"urn:cir-infer:problem:{self.kind}",
            "title": KINDS[self.kind].title,
            "status": self.status,
            "detail": self.detail,
            **self.more,
            **({} if request is None else {"instance": f"{_REQUEST}{request}"}),
        }

    def body(self, request: str | None = None) -> bytes:
        """The document as JSON."""
        return json.dumps(self.document(request)).encode()


class _Busy(Problem):
    """A refusal because too much is being done already. Many are alike, and asked for by the thousand."""

    def __init__(self, detail: str, seconds: int) -> None:
        super().__init__("overloaded", detail, {"Retry-After": str(seconds)}, retry_after=seconds)

    def body(self, request: str | None = None) -> bytes:
        told = _told_busy(self.detail, self.more["retry_after"])
        return (
            told
            if request is None
            else b'%b, "instance": "%b%b"}' % (*(told[:-1], _REQUEST.encode(), request.encode()),)
        )


@functools.lru_cache(256)
def _told_busy(detail: str, seconds: int) -> bytes:
    return Problem("overloaded", detail, retry_after=seconds).body()


_folders: set[str] = set()


def hide_folders(*places: Path) -> None:
    """Of what lies in the folders of these, problems name no more than the last part from now on.

    Whoever asks the SDK has to know which file is meant; whoever asks a service is not told where it lies.
    """
    parents = (one.parent for place in places for one in (place, place.absolute(), place.resolve()))
    _folders.update(str(parent) for parent in parents if parent.name)


def _told(error: CirError) -> str:
    text = str(error)
    for folder in sorted(_folders, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def problem_of(error: BaseException) -> Problem:
    """What a caller is told of an error. What is no fault of the caller's says nothing of our insides."""
    from starlette.exceptions import HTTPException

    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):  # of Starlette's routing
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "malformed-request")
        return Problem(kind, "see /openapi.json for what there is", dict(error.headers or {}))
    if isinstance(error, ImageError):
        return Problem("unusable-image", _told(error))
    if isinstance(error, TextError):
        return Problem("unusable-text", _told(error))
    if isinstance(error, (UsageError, MetadataError)):
        return Problem("invalid-argument", _told(error))
    if isinstance(error, GalleryBusyError):
        return busy("somebody else is writing to the gallery; try again")
    if isinstance(error, StaleHitError):
        return Problem("changed", "the item, or the reference, was replaced since it was found; ask again")
    if isinstance(error, ShardError):
        return busy("a part of the gallery does not answer; try again")
    if isinstance(error, GalleryError) and "is empty; add images" in str(error):
        return Problem("empty-gallery", "the gallery holds no items yet; add some with cir-index or PUT")
    if isinstance(error, CirError):
        return Problem("internal", f"{type(error).__name__}; the service's log says more")
    return Problem("internal", "an unexpected fault; the service's log says more")


def busy(detail: str, seconds: int = 1) -> Problem:
    """A refusal because too much is being done already."""
    return _Busy(detail, seconds)
