"""The application: every route, what it says of itself, and the layer that guards it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from cir_infer import __version__
from cir_infer.serving import page
from cir_infer.serving.background import in_thread
from cir_infer.serving.exchanges import json_answer
from cir_infer.serving.item_routes import ItemRoutes
from cir_infer.serving.keys import Keys
from cir_infer.serving.openapi import Document
from cir_infer.serving.problems import Problem, raises
from cir_infer.serving.protection import Guard
from cir_infer.serving.routing import Routes
from cir_infer.serving.search_routes import SearchRoutes
from cir_infer.serving.service import Service
from cir_infer.serving.shard_routes import ShardRoutes

__all__ = ["make_app"]


def make_app(service: Service, on_start: Callable[[], None] | None = None) -> Guard:
    """The application over a service, for any ASGI server; it closes the service at its end.

    Args:
        service: what answers.
        on_start: called in the event loop when it begins.

    Raises:
        UsageError: the file of API keys cannot be used.
    """
    settings = service.settings
    keys = None if settings.api_key_file is None else Keys.read(settings.api_key_file)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        if on_start is not None:
            on_start()
        yield
        service.ready = False
        await in_thread(service.watching, service.close)

    routes, document = Routes(service.budget, lifespan), Document()
    searches, items, status = SearchRoutes(service), ItemRoutes(service), _Status(service, document)

    def add(method: str, path: str, endpoint: Any, name: str = "") -> None:
        routes.add(method, path, endpoint)
        if name:
            document.add(method, path, name, endpoint)

    add("POST", "/v1/search", searches.search, "search")
    add("POST", "/v1/search/batch", searches.batch, "search_batch")
    add("POST", "/v1/explain", searches.explain, "explain")
    add("POST", "/v1/search/vectors", searches.vectors, "search_vectors")
    add("GET", "/v1/items", items.items, "list_items")
    add("GET", "/v1/items/{id}", items.item, "get_item")
    add("PUT", "/v1/items/{id}", items.put, "put_item")
    add("PATCH", "/v1/items/{id}", items.patch, "patch_item")
    add("DELETE", "/v1/items/{id}", items.delete, "delete_item")
    add("GET", "/v1/items/{id}/image", items.image, "get_item_image")
    add("GET", "/v1/fields", items.fields, "list_fields")
    add("GET", "/v1/info", status.info, "info")
    add("GET", "/healthz", status.alive, "alive")
    add("GET", "/readyz", status.ready, "ready")
    add("GET", "/metrics", status.metrics, "metrics")
    add("GET", "/openapi.json", status.openapi)
    if settings.shard:
        shard = ShardRoutes(service)
        add("GET", "/v1/shard", shard.about)
        add("POST", "/v1/shard/search", shard.search)
        add("POST", "/v1/shard/items", shard.items)
    if settings.page:
        add("GET", "/", page.index)
        add("GET", "/favicon.ico", page.icon)
        add("GET", "/assets/{name}", page.asset)
    return Guard(routes, settings, keys, service.metrics, service.check_room)


class _Status:
    """The routes that say how the service is.

    Args:
        service: of which.
        document: what OpenAPI says of the routes.
    """

    def __init__(self, service: Service, document: Document) -> None:
        self._service, self._document = service, document

    async def alive(self, _: Any) -> Any:
        """Whether the process answers."""
        return json_answer({"status": "alive"})

    @raises("overloaded")
    async def ready(self, _: Any) -> Any:
        """Whether the model is warm and the gallery open."""
        if not self._service.ready:
            raise Problem("overloaded", "the service is ending", {"Retry-After": "5"})
        return json_answer({"status": "ready"})

    async def info(self, _: Any) -> Any:
        """The model, the gallery, what can be asked, the limits."""
        about = await in_thread(self._service.beside, self._service.describe)
        return json_answer({"version": __version__, **about})

    async def metrics(self, _: Any) -> Any:
        """Counters and histograms for Prometheus."""
        from fastapi.responses import Response

        text, kind = await in_thread(self._service.watching, self._metrics)
        return Response(text, 200, media_type=kind)

    def _metrics(self) -> tuple[bytes, str]:
        with self._service.current.use() as opened:
            snapshot = opened.gallery.snapshot()
        self._service.metrics.rows.set(snapshot.count)
        self._service.metrics.generation.set(snapshot.generation)
        return self._service.metrics.text()

    async def openapi(self, _: Any) -> Any:
        """This API's OpenAPI document."""
        # FastAPI takes its time to make it, which no query shall wait for.
        return json_answer(await in_thread(self._service.watching, self._document.made))
