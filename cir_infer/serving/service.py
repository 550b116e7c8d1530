"""A service: a searcher with what stands around it when many ask at once. HTTP is elsewhere, in `routes`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cir_infer.bundle.manifest import PixelInput
from cir_infer.engine import Engine
from cir_infer.errors import CirError, GalleryError, ImageError, shown
from cir_infer.explaining.explanation import Explanation
from cir_infer.hits import Hit, Hits
from cir_infer.inputs import remote
from cir_infer.inputs.images import image_size
from cir_infer.inputs.locations import Location
from cir_infer.inputs.preparing import PreparedImage
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.threads import Threads
from cir_infer.runtime.device_names import ON_PROCESSOR
from cir_infer.serving.background import in_thread
from cir_infer.serving.batching import Answer, Batcher, Query, Wanted
from cir_infer.serving.bodies import Budget, from_base64
from cir_infer.serving.browsing import Fields, item_of
from cir_infer.serving.metrics import Metrics
from cir_infer.serving.opened import Current, Opened, Parts, open_searcher
from cir_infer.serving.problems import Problem, busy
from cir_infer.serving.schemas import ExplainRequest, SearchRequest, VectorsRequest
from cir_infer.serving.settings import Settings
from cir_infer.serving.thumbnails import Thumbnails
from cir_infer.serving.writing import Writer
from cir_infer.shards.shard import LocalShard
from cir_infer.vector_searcher import VectorSearcher

__all__ = ["Found", "Service"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_BODIES = 256 << 20


class Found(NamedTuple):
    """The answer to a query, and where its time went.

    Attributes:
        hits: the hits.
        stages: seconds by stage: "decode", "wait", "search", and "explain" where that was asked.
        explanations: of the first hits, as many as were asked; in place of each that there is none of, why.
    """

    hits: Hits
    stages: dict[str, float]
    explanations: Sequence[Explanation | CirError | Problem] = ()


class Service:
    """What one process serves.

    Args:
        settings: what it was told.
        parts: see `open_searcher`.

    Raises:
        CirError: bundle or gallery cannot be opened.
    """

    def __init__(self, settings: Settings, parts: Parts | None = None) -> None:
        remote.only(settings.remote_images)  # all of this process, however it comes to read something
        self.settings = settings
        self.metrics = Metrics()
        self.current = Current(lambda: open_searcher(settings, parts))
        self.batcher = Batcher(settings.max_batch, self.metrics, self._batches())
        self.pictures = Thumbnails(settings.max_pixels)
        self.fields = Fields()
        self.budget = Budget(max(_BODIES, 4 * settings.max_upload))
        # Each apart from the next, which may wait for a slow disk, for a store or for many before it.
        self.watching, self.beside, self.picturing = Threads(1), Threads(2), Threads(2)
        self.writer = Writer(settings.images_path) if settings.writable else None
        self._decoders = Threads(min(8, available_cpus()))
        self._explaining = Threads(1)
        self._in_work = 0
        self._warm_up()
        self.ready = True

    def _batches(self) -> int:
        """How many batches are computed at the same time."""
        if self.settings.batches is not None:
            return self.settings.batches
        with self.current.use() as opened:
            on_processor = opened.searcher.engine.device in ON_PROCESSOR
        # More than two wait for the interpreter, which one of them holds for a third of its time.
        return min(2, available_cpus()) if on_processor else 1

    def _warm_up(self) -> None:
        """Load what reads images; the searcher is warm already."""
        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "JPEG")
        with self.current.use() as opened, contextlib.suppress(ImageError):  # a bundle on features reads none
            self._prepared(opened.searcher.engine, out.getvalue())

    # ---- its life

    def reload(self) -> bool:
        """Open bundle and gallery again, beside those that answer; False, and a log line, on failure."""
        try:
            self.current.reload()
        except Exception as error:  # whatever it is: nobody waits for the thread, who could be told
            trace = None if isinstance(error, CirError) else error
            _log.error("the bundle was not loaded again, the old one goes on: %s", error, exc_info=trace)
            self.metrics.reloads.labels("failed").inc()
            return False
        self.fields = Fields()  # another gallery can have the same generation
        _log.info("the bundle was loaded again")
        self.metrics.reloads.labels("done").inc()
        return True

    def close(self) -> None:
        """Answer what was accepted, then give everything back."""
        self.ready = False
        if self.writer is not None:
            self.writer.close()
        self.batcher.close()
        self.current.close()
        self._decoders.close()
        self._explaining.close()
        for threads in (self.watching, self.beside, self.picturing):
            threads.close()

    # ---- queries

    async def search(
        self, requests: Sequence[SearchRequest], image: bytes | None = None
    ) -> list[Found | CirError | Problem]:
        """The answers to queries, in order, computed together as far as they want the same.

        Args:
            requests: the queries.
            image: of the only one, if it came as a file.

        Raises:
            Problem: too much is being computed already.
        """
        self._begin(len(requests))
        opened = self.current.take()
        try:
            deadline = time.monotonic() + self.settings.timeout
            if len(requests) == 1:  # a task of its own would be for nothing
                return [await self._tried(opened, requests[0], image, deadline)]
            return await asyncio.gather(
                *(self._tried(opened, request, image, deadline) for request in requests)
            )
        finally:
            opened.give_back()
            self._end(len(requests))

    async def explain(self, request: ExplainRequest, image: bytes | None) -> Explanation:
        """Why an item has its score in the answer to a query.

        Raises:
            CirError: see `Searcher.explain`.
            Problem: there is no such item, its picture cannot be read, or too much is being computed already.
        """
        request.check()
        if not request.hit or request.explain:
            raise Problem("invalid-argument", "expected hit, the id of the item to explain, and no `explain`")
        self._begin(1)
        opened = self.current.take()
        try:
            if image is None and request.image is not None:
                image = await in_thread(self._decoders, from_base64, request.image)
            if image is not None:
                await self.prepared(opened.searcher.engine, image)  # what is wrong with it is the caller's
            return await in_thread(self._explaining, self._explained, opened, request.hit, request, image)
        finally:
            opened.give_back()
            self._end(1)

    def _explained(
        self, opened: Opened, hit: Hit | str, request: SearchRequest, image: bytes | None
    ) -> Explanation:
        """Why an item has its score; of a Hit of this request's answer, as it was then."""
        searcher, snapshot = opened.searcher, opened.gallery.snapshot()
        item_of(snapshot, hit.id if (answered := isinstance(hit, Hit)) else hit)
        reference: Any = image
        try:
            if request.item is not None:
                item_of(snapshot, request.item)
                refines = self._refines_rows(searcher.engine)
                reference = (searcher.item if refines else partial(self._picture_of, opened))(request.item)
            return searcher.explain(hit, reference, request.text, request.balance, as_found=answered)
        except ImageError as error:
            _log.info("no explanation: %s", error)
            raise Problem(
                "unusable-image",
                "the picture of the item, or of the reference, cannot be read, or is not the one indexed",
            ) from None

    def check_k(self, k: int) -> None:
        """Refuse a number of hits beyond what is allowed.

        Raises:
            Problem: it is.
        """
        if not 1 <= k <= self.settings.max_k:
            raise Problem("invalid-argument", f"k is {shown(k)}; expected 1 to {self.settings.max_k}")

    async def search_vectors(self, request: VectorsRequest) -> list[Hits]:
        """The items nearest to vectors, for each.

        Raises:
            CirError: see `Searcher.search_vectors`.
            Problem: too much is being computed already.
        """
        self.check_k(request.k)
        self._begin(1)
        try:
            return await in_thread(self.beside, self._nearest, request)
        finally:
            self._end(1)

    def _nearest(self, request: VectorsRequest) -> list[Hits]:
        with self.current.use() as opened:
            searcher: VectorSearcher = opened.searcher
            lengths = {len(vector) for vector in request.vectors}
            if lengths != {opened.searcher.engine.dimension}:
                raise Problem(
                    "invalid-argument",
                    f"vectors of {sorted(lengths)[:4]} numbers; this gallery's have "
                    f"{opened.searcher.engine.dimension}",
                )
            vectors = np.array(request.vectors, np.float64)
            return searcher.search_vectors(vectors, request.k, request.where, request.exclude, request.metric)

    async def of_shard(self, work: Callable[[LocalShard], T]) -> T:
        """What the gallery answers as a shard.

        Raises:
            CirError: see `Shard`.
            Problem: too much is being computed already.
        """
        self._begin(1)
        try:
            return await in_thread(self.beside, self._as_shard, work)
        finally:
            self._end(1)

    def _as_shard(self, work: Callable[[LocalShard], T]) -> T:
        with self.current.use() as opened:
            return work(LocalShard(opened.searcher))

    def check_room(self) -> None:
        """Refuse a request at once whose queries would wait too long, which serves nobody, or be too many.

        How long is judged by what queries took lately. Where none is before it, one is never refused.
        Several queries of one request are let in where one is: were room asked for all of them, single ones
        would take each place that comes free, and under constant overload no batch would ever be answered.
        So at most a batch less one is in work beyond the limit, and then nobody is let in until it is done.

        Raises:
            Problem: there is no room; `Retry-After` says when what is in work should be done.
        """
        most, pace, wanted = self.settings.queue, self.batcher.pace, self._in_work + 1
        wait = self._in_work * pace.seconds_a_query
        if wanted > most or (self._in_work and (wait > self.settings.max_wait or wanted > pace.room(most))):
            pace.refused()
            raise busy(
                f"{self._in_work} queries are being answered; try again",
                seconds=min(max(math.ceil(wait), 1), 60),
            )

    def _end(self, count: int) -> None:
        self._in_work -= count
        self.metrics.level(self.metrics.queue, self._in_work)

    def _begin(self, count: int) -> None:
        """Accept queries, or refuse them."""
        self.check_room()
        self._in_work += count
        self.metrics.level(self.metrics.queue, self._in_work)

    async def _tried(
        self, opened: Opened, request: SearchRequest, image: bytes | None, deadline: float
    ) -> Found | CirError | Problem:
        try:
            return await self._searched(opened, request, image, deadline)
        except (CirError, Problem) as error:
            return error
        except TimeoutError:
            return Problem("timeout", f"the query was not answered within {self.settings.timeout:g} seconds")

    async def _searched(
        self, opened: Opened, request: SearchRequest, image: bytes | None, deadline: float
    ) -> Found:
        begun = time.monotonic()
        request.check()
        self.check_k(request.k)
        reference, make, excluded = self._reference(opened, request, image)
        exclude = tuple(request.exclude) + excluded
        wanted = Wanted(request.k, request.where, exclude, request.exclude_reference, request.balance)
        query = Query(opened.take(), reference, request.text, wanted, deadline)
        making = None
        try:
            if make is None:
                self.batcher.ask(query)
            else:  # the thread that decodes asks: this loop has nothing to do in between
                making = self._decoders.submit(self.batcher.ask_made, query, make)
            answer = await query.future
        except GalleryError:
            if request.item is not None:
                await in_thread(self.beside, self._check_item, opened, request.item)
            raise
        finally:
            query.future.cancel()
            if making is not None:
                making.cancel()
            opened.give_back()
        found = self._found(answer, query.asked - begun)
        return await self._with_reasons(found, opened, request, image) if request.explain else found

    def _check_item(self, opened: Opened, item: str) -> None:
        item_of(opened.gallery.snapshot(), item)

    async def _with_reasons(
        self, found: Found, opened: Opened, request: SearchRequest, image: bytes | None
    ) -> Found:
        begun = time.monotonic()
        if image is None and request.image is not None:
            image = await in_thread(self._decoders, from_base64, request.image)
        told: list[Explanation | CirError | Problem] = []
        for hit in found.hits[: request.explain]:  # each by itself: who goes away ends it in between
            try:
                work = (opened, hit, request, image)
                told.append(await in_thread(self._explaining, self._explained, *work))
            except (CirError, Problem) as error:
                told.append(error)
        return Found(found.hits, {**found.stages, "explain": time.monotonic() - begun}, told)

    def _found(self, answer: Answer, decoding: float) -> Found:
        stages = {"decode": decoding, "wait": answer.waited, "search": answer.searched}
        for name, seconds in stages.items():
            self.metrics.stage(name, seconds)
        return Found(answer.hits, stages)

    def _reference(
        self, opened: Opened, request: SearchRequest, image: bytes | None
    ) -> tuple[Hit | None, Callable[[], PreparedImage] | None, tuple[str, ...]]:
        """The reference as a searcher takes it, or what makes it; and what must not be answered for it."""
        engine = opened.searcher.engine
        if request.item is not None:
            if image is not None:
                raise Problem("invalid-argument", "an item and an image were given; expected one reference")
            if self._refines_rows(engine):
                return Hit(request.item), None, ()
            return None, partial(self._image_of, opened, request.item), (request.item,)
        if image is not None:
            return None, partial(self._prepared, engine, image), ()
        if request.image is not None:
            return None, partial(self._decoded, engine, request.image), ()
        return None, None, ()

    async def prepared(self, engine: Engine, image: bytes) -> PreparedImage:
        """An image as the encoders take it.

        Raises:
            ImageError: it is none, or too large.
        """
        return await in_thread(self._decoders, self._prepared, engine, image)

    def _decoded(self, engine: Engine, image: str) -> PreparedImage:
        return self._prepared(engine, from_base64(image))

    def _prepared(self, engine: Engine, image: bytes) -> PreparedImage:
        check_size(image, self.settings.max_pixels)
        return engine.prepare_image(image)

    def _image_of(self, opened: Opened, item: str) -> PreparedImage:
        try:
            return self._prepared(opened.searcher.engine, self._picture_of(opened, item))
        except ImageError:
            said = "the image of this item cannot be read, and this model needs it"
            raise Problem("unusable-image", said) from None

    def _refines_rows(self, engine: Engine) -> bool:
        """Else it sees references with an encoder of its own, and needs the item's image."""
        return engine.row_is_reference or not engine.needs_reference

    def _picture_of(self, opened: Opened, item: str) -> bytes:
        source = item_of(opened.gallery.snapshot(), item).source
        if source is None:
            raise ImageError("the gallery does not know where it came from")
        image = Location.parse(source).read()
        check_size(image, self.settings.max_pixels)
        return image

    # ---- what it is

    def describe(self) -> dict[str, Any]:
        """What callers may know: the model, the gallery, what can be asked, the limits. No paths."""
        settings = self.settings
        with self.current.use() as opened:
            engine, snapshot = opened.searcher.engine, opened.gallery.snapshot()
            facts = engine.describe()
            return {
                "system": engine.manifest.system,
                "terms": list(engine.manifest.terms),
                "domain": facts.get("domain"),
                "device": engine.device,
                "fingerprint": engine.fingerprint,
                "dimension": engine.dimension,
                "needs_image": engine.needs_reference,
                "needs_text": engine.needs_text,
                "explains": isinstance(engine.manifest.image, PixelInput),
                "gallery": {
                    "items": snapshot.count,
                    "generation": snapshot.generation,
                    "row_type": str(snapshot.rows.dtype),
                },
                "writable": settings.writable,
                "limits": {
                    "upload_bytes": settings.max_upload,
                    "pixels": settings.max_pixels,
                    "k": settings.max_k,
                    "batch": min(settings.max_batch, settings.queue),
                    "seconds": settings.timeout,
                },
            }


def check_size(image: bytes, most: int) -> None:
    """Refuse an image by its header, before its pixels are decoded.

    Raises:
        ImageError: it has more pixels.
    """
    width, height = image_size(image) or (0, 0)
    if width * height > most:
        raise ImageError(
            f"the image has {width:,} x {height:,} pixels; at most {most:,} are taken, scale it down first"
        )
