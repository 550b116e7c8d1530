"""Items that are put and deleted over HTTP. What waits at the same time is encoded and committed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cir_infer.errors import CirError, GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.arguments import checked_ids
from cir_infer.gallery.catalogue.catalogue import OutcomeUnknownError
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.metadata.metadata import encode
from cir_infer.gallery.snapshot import Item
from cir_infer.inputs.opening import why
from cir_infer.serving.background import deliver
from cir_infer.serving.browsing import none_of_this_id
from cir_infer.serving.opened import Opened
from cir_infer.serving.problems import Problem

__all__ = ["Change", "Writer"]

_log = logging.getLogger(__name__)
_MOST = 64


@dataclass(eq=False)
class Change:
    """A change to one item.

    Attributes:
        opened: the gallery to change and the engine that encodes.
        item: its id.
        remove: whether it is to go.
        prepared: the image as the encoder takes it; None keeps the row that the item has.
        data: the image as it was sent; kept for pictures and for re-encoding.
        metadata: what it is to have; None keeps what it has.
    """

    opened: Opened
    item: str
    remove: bool = False
    prepared: Any = None
    data: bytes | None = None
    metadata: dict[str, Any] | None = None
    loop: asyncio.AbstractEventLoop = field(init=False)
    future: asyncio.Future[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future = self.loop.create_future()

    def check(self) -> None:
        """What can be refused before its turn.

        Raises:
            Problem: the id or the metadata is none that a gallery takes.
        """
        try:
            checked_ids([self.item])
            if self.metadata is not None:
                encode(self.metadata, self.item)
                # A library may leave NaN out as missing, and says so in a log that no client sees.
                if not _is_json(self.metadata):
                    raise GalleryError("the metadata holds NaN, which is no JSON; send null, or leave it out")
        except CirError as error:
            raise Problem("invalid-argument", str(error)) from error


def _is_json(value: Any) -> bool:
    """Whether no number in it is NaN; what it is read by takes that."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    return all(map(_is_json, value)) if isinstance(value, list) else value == value


class _Before(NamedTuple):
    """An item as it is before a change: `vector` reads its row."""

    item: Item
    vector: Callable[[], Any]
    stamp: str | None


def _held(gallery: Gallery, batch: list[Change]) -> dict[str, _Before]:
    """Those items of some changes that the gallery holds now, by id."""
    snapshot = gallery.snapshot()
    rows = {change.item: snapshot.row(change.item) for change in batch}
    found = {item: row for item, row in rows.items() if row is not None}
    items, keys = snapshot.items([*found.values()]), snapshot.keys([*found.values()]).tolist()
    stamps = gallery.stamps_of(keys)
    return {
        item.id: _Before(item, partial(snapshot.vector, row), stamps.get(key))
        for item, row, key in zip(items, found.values(), keys, strict=True)
    }


class Writer:
    """A thread that carries out changes.

    Args:
        images: the folder for the images of items; made when it is needed.
    """

    def __init__(self, images: Path) -> None:
        self._images = images
        self._waiting: deque[Change] = deque()
        self._there_is = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="cir-serve-changes", daemon=True)
        self._thread.start()

    async def done(self, change: Change) -> bool:
        """Carry a change out; it is on the disk then. Once it waits, it is not taken back.

        Returns:
            Whether the gallery held the item before.

        Raises:
            CirError: see `Gallery.add_vectors` and `Gallery.remove`.
        """
        change.check()
        with self._there_is:
            if self._closed:
                raise RuntimeError("the service is ending")
            self._waiting.append(change)
            self._there_is.notify()
        return await asyncio.shield(change.future)

    def close(self) -> None:
        """Carry out what waits, then end."""
        with self._there_is:
            self._closed = True
            self._there_is.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            if not self._together(batch) and len(batch) > 1:
                for change in batch:
                    self._together([change])

    def _next(self) -> list[Change]:
        """Changes that one commit can hold: of one kind, over one gallery, each of another item."""
        with self._there_is:
            while not self._waiting and not self._closed:
                self._there_is.wait()
            batch: list[Change] = []
            while self._waiting and len(batch) < _MOST:
                change = self._waiting[0]
                if batch and (change.opened, change.remove) != (batch[0].opened, batch[0].remove):
                    break
                if any(change.item == other.item for other in batch):
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _together(self, batch: list[Change]) -> bool:
        """One commit; False where it failed and none of several has been told so."""
        try:
            held = self._removed(batch) if batch[0].remove else self._put(batch)
        except Exception as error:
            # For another writer each would wait again, one after the other.
            if len(batch) > 1 and not isinstance(error, GalleryBusyError):
                return False
            if not isinstance(error, (CirError, Problem)):
                _log.exception("a change failed")
            for change in batch:
                deliver(change.loop, change.future, None, error)
            return True
        for change in batch:
            deliver(change.loop, change.future, change.item in held, None)
        return True

    def _put(self, batch: list[Change]) -> set[str]:
        opened = batch[0].opened
        vectors: dict[int, Any] = {}
        written: dict[int, Path] = {}
        try:
            fresh = [at for at, change in enumerate(batch) if change.data is not None]
            for at in fresh:
                written[at] = self._kept(batch[at].data or b"")
            if fresh:
                prepared = np.stack([batch[at].prepared.array for at in fresh])
                rows = opened.searcher.engine.encode_prepared(prepared)
                vectors.update(zip(fresh, rows, strict=True))
            # As the one writer, so that what is read here is still so in the commit: other workers and
            # programs change the same items.
            with opened.gallery.writing():
                held = _held(opened.gallery, batch)
                self._commit(opened.gallery, batch, held, vectors, written)
        except BaseException as error:
            # Where the commit is there all the same, or may be, its items have these pictures.
            if not (isinstance(error, OutcomeUnknownError) or getattr(error, "durable", False)):
                for path in written.values():
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
            raise
        for at in fresh:
            if batch[at].item in held:
                self._forget(held[batch[at].item].item.source)
        return set(held)

    def _commit(
        self,
        gallery: Gallery,
        batch: list[Change],
        held: dict[str, _Before],
        vectors: dict[int, Any],
        written: dict[int, Path],
    ) -> None:
        """Add or replace items, in one commit. What a change says nothing of stays as it is."""
        metadata: list[Any] = []
        sources: list[str | None] = []
        stamps: list[str | None] = []
        for at, change in enumerate(batch):
            before = held.get(change.item)
            if at in written:
                sources.append(str(written[at]))
                stamps.append(None)
            elif before is None:
                raise none_of_this_id()
            else:
                vectors[at] = before.vector()
                sources.append(before.item.source)
                stamps.append(before.stamp)  # else `cir-index` would take its own metadata for newer
            kept = None if before is None else before.item.metadata
            metadata.append(kept if change.metadata is None else change.metadata)
        gallery.add_vectors(
            ids=[change.item for change in batch],
            vectors=np.stack([vectors[at] for at in range(len(batch))]),
            metadata=metadata,
            sources=sources,
            stamps=stamps,
            existing="replace",
        )

    def _removed(self, batch: list[Change]) -> set[str]:
        gallery = batch[0].opened.gallery
        with gallery.writing():
            held = _held(gallery, batch)
            if held:
                gallery.remove(list(held))
        for before in held.values():
            self._forget(before.item.source)
        return set(held)

    def _kept(self, data: bytes) -> Path:
        """An image's bytes in a file of their own, on the disk before the commit that names it.

        Raises:
            GalleryError: the disk does not take it.
        """
        try:
            return self._on_disk(data)
        except OSError as error:
            raise GalleryError(f"{self._images}: a picture cannot be kept here ({why(error)})") from error

    def _on_disk(self, data: bytes) -> Path:
        name = secrets.token_hex(12)
        folder = self._images / name[:2]
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / name).absolute()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        for place in (folder, self._images):
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return path

    def _forget(self, source: str | None) -> None:
        """Remove a file of our own that no item names any more; anything else stays."""
        if source is None:
            return
        path = Path(source)
        if path.parent.parent == self._images.absolute():
            with contextlib.suppress(OSError):
                path.unlink()
