"""The routes of queries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from cir_infer.errors import CirError
from cir_infer.hits import Hits
from cir_infer.serving.bodies import header_of, read_form
from cir_infer.serving.exchanges import IN_TIME, WITH_BODY, body_of, finished, json_answer, server_timing
from cir_infer.serving.forms import search_of_form
from cir_infer.serving.problems import Problem, problem_of, raises
from cir_infer.serving.schemas import (
    PARSED,
    BatchAnswer,
    BatchRequest,
    ExplainRequest,
    HitAnswer,
    SearchAnswer,
    SearchRequest,
    VectorsAnswer,
    VectorsRequest,
    parsed,
)
from cir_infer.serving.service import Found, Service
from cir_infer.serving.thumbnails import image_address

if TYPE_CHECKING:
    from fastapi import Request

__all__ = ["SearchRoutes"]

R = TypeVar("R", bound=SearchRequest)
_QUERY = (*WITH_BODY, *PARSED, *IN_TIME)
_ANSWERED = ("unusable-image", "unusable-text", "not-found")
"""Problems of one query; in a batch they stand in the place of its answer."""
_GRACE = 1.0
"""Seconds beyond the deadline of queries, after which also what is being computed is given up."""


class SearchRoutes:
    """Answers /v1/search and what is below it.

    Args:
        service: that computes.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    @raises(*_QUERY, *_ANSWERED, "empty-gallery")
    async def search(self, request: Any) -> Any:
        """One query: an image or an item, and a text."""
        begun = time.perf_counter()
        query, image = await self._query(request, SearchRequest)
        read = time.perf_counter()
        (found,) = await self._found(request, [query], image)
        if not isinstance(found, Found):
            raise found
        timing, headers = server_timing({"read": read - begun, **found.stages}, begun)
        return json_answer(_answer(found, timing, request), headers=headers)

    @raises(*_QUERY, *_ANSWERED, "changed")
    async def explain(self, request: Any) -> Any:
        """Why an item has its score: maps over its image and the reference's, and what each word is worth."""
        begun = time.perf_counter()
        query, image = await self._query(request, ExplainRequest)
        request.scope["state"]["asked"] = f"why {query.hit}"
        read = time.perf_counter()
        seconds = self._service.settings.timeout
        why = await finished(request, self._service.explain(query, image), seconds)
        stages = {"read": read - begun, "explain": time.perf_counter() - read}
        timing, headers = server_timing(stages, begun)
        return json_answer({**why.as_dict(), "timing": timing}, headers=headers)

    @raises(*_QUERY)
    async def batch(self, request: Any) -> Any:
        """Several queries, computed together."""
        begun = time.perf_counter()
        _, body = await body_of(request, self._service, "application/json")
        queries = parsed(BatchRequest, body).queries
        most = min(self._service.settings.max_batch, self._service.settings.queue)
        if not 1 <= len(queries) <= most:
            raise Problem("invalid-argument", f"{len(queries)} queries; expected 1 to {most}")
        answers: list[Any] = []
        for found in await self._found(request, queries, None):
            if isinstance(found, Found):
                answers.append(_answer(found, server_timing(found.stages, begun)[0], request))
            else:
                answers.append(problem_of(found).document(request.state.request_id))
        timing, headers = server_timing({}, begun)
        return json_answer(BatchAnswer(answers, timing), headers=headers)

    @raises(*_QUERY, "empty-gallery")
    async def vectors(self, request: Any) -> Any:
        """Vectors that were made elsewhere: the items whose rows are nearest, exactly."""
        begun = time.perf_counter()
        _, body = await body_of(request, self._service, "application/json")
        asked: VectorsRequest = parsed(VectorsRequest, body)
        asked.check(self._service.settings.max_batch)
        read = time.perf_counter()
        seconds = self._service.settings.timeout
        found = await finished(request, self._service.search_vectors(asked), seconds)
        stages = {"read": read - begun, "search": time.perf_counter() - read}
        timing, headers = server_timing(stages, begun)
        return json_answer(VectorsAnswer([_told(hits) for hits in found], timing), headers=headers)

    async def _query(self, request: Request, kind: type[R]) -> tuple[R, bytes | None]:
        """A query and its image, from JSON or a form."""
        media, body = await body_of(request, self._service, "application/json", "multipart/form-data")
        if media == "application/json":
            query: R = parsed(kind, body)
            return query, None
        form = read_form(header_of(request, b"content-type"), body)
        return search_of_form(form, kind), form.file

    async def _found(
        self, request: Request, queries: list[SearchRequest], image: bytes | None
    ) -> list[Found | CirError | Problem]:
        state = request.scope["state"]
        if state["keep_asked"]:
            state["asked"] = "; ".join(
                f"{q.item or 'image'} + {q.text!r} where {q.where!r}" for q in queries[:4]
            )
        seconds = self._service.settings.timeout + _GRACE
        return await finished(request, self._service.search(queries, image), seconds)


def _answer(found: Found, timing: dict[str, float], request: Request) -> SearchAnswer:
    hits, number = found.hits, request.scope["state"]["request_id"]
    explanations: list[Any] = [
        problem_of(why).document(number) if isinstance(why, Exception) else why.as_dict()
        for why in found.explanations
    ]
    return SearchAnswer(_told(hits), list(hits.unknown_words), hits.reference_id, timing, explanations)


def _told(hits: Hits) -> list[HitAnswer]:
    return [
        HitAnswer(
            hit.id,
            hit.rank,
            hit.score,
            dict(hit.terms),
            dict(hit.metadata),
            image_address(hit.id, hit.source),
        )
        for hit in hits
    ]
