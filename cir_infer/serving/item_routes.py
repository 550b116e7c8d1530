"""The routes of items: look at them, browse them, put, change and delete them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cir_infer.processes.threads import Threads
from cir_infer.serving.background import in_thread
from cir_infer.serving.bodies import from_base64, read_form
from cir_infer.serving.browsing import item_of, items_after, items_by_chance, none_of_this_id, told_item
from cir_infer.serving.exchanges import IN_TIME, WITH_BODY, body_of, finished, id_of, json_answer, parameters
from cir_infer.serving.forms import filter_of, number
from cir_infer.serving.opened import Opened
from cir_infer.serving.problems import Problem, raises
from cir_infer.serving.schemas import PARSED, FieldsRequest, ItemRequest, ItemsAnswer, parsed
from cir_infer.serving.service import Service
from cir_infer.serving.thumbnails import closest_size
from cir_infer.serving.writing import Change

if TYPE_CHECKING:
    from fastapi import Request

__all__ = ["ItemRoutes"]


class ItemRoutes:
    """Answers /v1/items, what is below it, and /v1/fields.

    Args:
        service: whose gallery it is.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    @raises("not-found", *IN_TIME)
    async def item(self, request: Any, id: str) -> Any:
        """An item by its id, which is one segment of the address (a slash in it is %2F)."""
        item = id_of(id)
        request.state.asked = item
        return json_answer(await self._reading(request, lambda s: told_item(item_of(s, item))))

    @raises("invalid-argument", "not-found", *IN_TIME)
    async def image(self, request: Any, id: str) -> Any:
        """The picture of an item, scaled down to `size` pixels (128, 256, 512, 1024 or 2048)."""
        from fastapi.responses import Response

        given = parameters(request, "size", "v")
        size = closest_size(number(given.get("size"), "size", 512))
        has = request.headers.get("if-none-match", "")
        item = id_of(id)

        def picture(snapshot: Any) -> Any:
            source = item_of(snapshot, item).source
            if source is None:
                raise Problem("not-found", "the gallery does not know where the image of this item is")
            with self._service.current.use() as opened:
                upright = opened.upright
            return self._service.pictures.picture(source, size, has, upright)

        tag, jpeg = await self._reading(request, picture, self._service.picturing)
        headers = {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=600"}
        if jpeg is None:
            return Response(None, 304, headers)
        return Response(jpeg, 200, headers, media_type="image/jpeg")

    @raises("invalid-argument", *IN_TIME)
    async def items(self, request: Any) -> Any:
        """Items in the order in which they were added, or by chance with `order=random`."""
        given = parameters(request, "where", "after", "limit", "order")
        where = filter_of(given.get("where"))
        most = self._service.settings.max_k
        limit = number(given.get("limit"), "limit", min(50, most))
        if not 1 <= limit <= most:
            raise Problem("invalid-argument", f"limit is {limit}; expected 1 to {most}")
        order = given.get("order", "added")
        if order not in ("added", "random"):
            raise Problem("invalid-argument", f"order is {order[:80]!r}; expected added or random")
        after = given.get("after", "")
        request.state.asked = given.get("where", "")
        if order == "random":
            return json_answer(await self._reading(request, lambda s: items_by_chance(s, where, limit)))

        def page(opened: Opened) -> ItemsAnswer:
            return items_after(opened.gallery.snapshot(), opened.mark, where, after, limit)

        return json_answer(await self._using(request, page))

    @raises(*IN_TIME)
    async def fields(self, request: Any) -> Any:
        """The fields of the metadata, by the names that filters use."""
        return json_answer({"fields": await self._reading(request, self._service.fields.of)})

    @raises(*WITH_BODY, *PARSED, "forbidden", "not-found", "unusable-image", "overloaded")
    async def put(self, request: Any, id: str) -> Any:
        """Add an item or replace it: an image, metadata, or both. One commit, on the disk with the answer."""
        writer = self._writer()
        kinds = ("application/json", "multipart/form-data", "image/")
        kind, body = await body_of(request, self._service, *kinds)
        image, metadata = await self._wanted(request, kind, body)
        request.state.asked = id_of(id)
        with self._service.current.use() as opened:
            change = Change(opened, id_of(id), data=image, metadata=metadata)
            change.check()
            if image is not None:
                change.prepared = await self._service.prepared(opened.searcher.engine, image)
            replaced = await writer.done(change)
        return json_answer({"id": change.item, "replaced": replaced}, 200 if replaced else 201)

    @raises(*WITH_BODY, *PARSED, "forbidden", "not-found", "overloaded")
    async def patch(self, request: Any, id: str) -> Any:
        """Change some fields of an item's metadata; null takes one away. On the disk with the answer."""
        writer = self._writer()
        _, body = await body_of(request, self._service, "application/json")
        asked: FieldsRequest = parsed(FieldsRequest, body)
        request.state.asked = id_of(id)
        with self._service.current.use() as opened:
            await writer.done(Change(opened, id_of(id), metadata=asked.metadata, merge=True))
        return json_answer({"id": id_of(id)})

    @raises("invalid-argument", "forbidden", "not-found", "overloaded")
    async def delete(self, request: Any, id: str) -> Any:
        """Remove an item. One commit, on the disk with the answer."""
        from fastapi.responses import Response

        writer = self._writer()
        request.state.asked = id_of(id)
        with self._service.current.use() as opened:
            held = await writer.done(Change(opened, id_of(id), remove=True))
        if not held:
            raise none_of_this_id()
        return Response(None, 204)

    async def _wanted(
        self, request: Request, kind: str, body: bytes
    ) -> tuple[bytes | None, dict[str, Any] | None]:
        if kind.startswith("image/"):
            return body, None
        if kind == "multipart/form-data":
            form = read_form(request.headers["content-type"], body)
            if set(form.fields) - {"metadata"}:
                raise Problem("invalid-argument", "a field is unknown; expected image and metadata")
            text = form.one("metadata")
            return form.file, None if text is None else parsed(dict[str, Any], text.encode())
        asked: ItemRequest = parsed(ItemRequest, body)
        if asked.image is None and asked.metadata is None:
            raise Problem("invalid-argument", "neither an image nor metadata; expected one of them")
        if asked.image is None:
            return None, asked.metadata
        return await in_thread(self._service.beside, from_base64, asked.image), asked.metadata

    def _writer(self) -> Any:
        if self._service.writer is None:
            raise Problem("forbidden", "this service only reads; start it with --writable")
        return self._service.writer

    async def _reading(self, request: Request, work: Any, threads: Threads | None = None) -> Any:
        """Something done with a snapshot, off the event loop; by `beside` unless told otherwise."""
        return await self._using(request, lambda opened: work(opened.gallery.snapshot()), threads)

    async def _using(
        self, request: Request, work: Callable[[Opened], Any], threads: Threads | None = None
    ) -> Any:
        def run() -> Any:
            with self._service.current.use() as opened:
                return work(opened)

        done = in_thread(self._service.beside if threads is None else threads, run)
        return await finished(request, done, self._service.settings.timeout)
