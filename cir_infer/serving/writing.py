"""Items that are put, changed and deleted over HTTP: what waits at the same time is one commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cir_infer.errors import CirError, GalleryError
from cir_infer.gallery import Snapshot
from cir_infer.gallery.arguments import checked_ids
from cir_infer.gallery.catalogue.catalogue import OutcomeUnknownError
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.metadata.metadata import encode
from cir_infer.gallery.snapshot import Item
from cir_infer.inputs.opening import why
from cir_infer.serving.background import deliver
from cir_infer.serving.browsing import item_of
from cir_infer.serving.opened import Opened
from cir_infer.serving.problems import Problem

__all__ = ["Change", "Writer"]

_log = logging.getLogger(__name__)
_MOST = 64
_OWN = re.compile("([0-9a-f]{2})[0-9a-f]{22}")
"""The name of a picture that a service keeps, after the folder that it lies in."""


@dataclass(eq=False)
class Change:
    """A change to one item.

    Attributes:
        opened: the gallery to change and the engine that encodes.
        item: its id.
        remove: whether it is to go.
        prepared: the image as the encoder takes it.
        data: the image as it was sent, kept for pictures and for re-encoding; None keeps what the item has.
        metadata: what it is to have; None keeps what it has.
        merge: whether, without an image, it keeps the fields that `metadata` does not name.
    """

    opened: Opened
    item: str
    remove: bool = False
    prepared: Any = None
    data: bytes | None = None
    metadata: dict[str, Any] | None = None
    merge: bool = False
    loop: asyncio.AbstractEventLoop = field(init=False)
    future: asyncio.Future[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future = self.loop.create_future()

    @property
    def kind(self) -> Literal["remove", "merge", "describe", "put"]:
        """What happens to the item: it goes, some or all of its metadata changes, it comes or is replaced."""
        if self.remove:
            return "remove"
        if self.data is not None:
            return "put"
        return "merge" if self.merge else "describe"

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


class Writer:
    """A thread that carries out changes.

    Args:
        images: the folder for the images of items; made when it is needed.
    """

    def __init__(self, images: Path) -> None:
        self._images = images
        self._work: dict[str, Callable[[list[Change]], set[str]]] = {
            "remove": self._removed,
            "merge": self._described,
            "describe": self._described,
            "put": self._put,
        }
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
            CirError: see `Gallery.add_vectors`, `Gallery.set_metadata` and `Gallery.remove`.
            Problem: there is no such item whose metadata could change.
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
        """Changes that one commit can hold: of one kind, over one gallery, each of another item.

        Others wait, and none of an item overtakes another of it.
        """
        with self._there_is:
            while not self._waiting and not self._closed:
                self._there_is.wait()
            batch: list[Change] = []
            others: list[Change] = []
            met: set[str] = set()
            while self._waiting and len(batch) < _MOST:
                change = self._waiting.popleft()
                first = batch[0] if batch else change
                fits = (change.opened, change.kind) == (first.opened, first.kind) and change.item not in met
                (batch if fits else others).append(change)
                met.add(change.item)
            self._waiting.extendleft(reversed(others))
            return batch

    def _together(self, batch: list[Change]) -> bool:
        """One commit; False where it failed and none of several has been told so."""
        try:
            held = self._work[batch[0].kind](batch)
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

    # What a change finds is read as the one writer: what was read before may be another's by then.

    def _put(self, batch: list[Change]) -> set[str]:
        opened = batch[0].opened
        gallery = opened.gallery
        prepared = np.stack([change.prepared.array for change in batch])
        vectors = opened.searcher.engine.encode_prepared(prepared)
        written: list[Path] = []
        try:
            for change in batch:
                written.append(self._kept(change.data or b""))
            with gallery.writing():
                old = _items(gallery.snapshot(), batch)
                gallery.add_vectors(
                    ids=[change.item for change in batch],
                    vectors=vectors,
                    metadata=[_metadata(change, old.get(change.item)) for change in batch],
                    sources=[str(path) for path in written],
                    existing="replace",
                )
        except BaseException as error:
            # Where the change is there, or nobody knows, its items name these files.
            if not (isinstance(error, OutcomeUnknownError) or getattr(error, "durable", False)):
                for path in written:
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
            raise
        for item in old.values():
            self._forget(item.source)
        return set(old)

    def _described(self, batch: list[Change]) -> set[str]:
        gallery = batch[0].opened.gallery
        with gallery.writing():
            snapshot = gallery.snapshot()
            for change in batch:
                item_of(snapshot, change.item)
            ids, metadata = zip(*((change.item, change.metadata) for change in batch), strict=True)
            gallery.set_metadata(ids, metadata, merge=batch[0].merge)
        return {change.item for change in batch}

    def _removed(self, batch: list[Change]) -> set[str]:
        gallery = batch[0].opened.gallery
        with gallery.writing():
            old = _items(gallery.snapshot(), batch)
            if old:
                gallery.remove(list(old))
        for item in old.values():
            self._forget(item.source)
        return set(old)

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
        """Remove a file of our own that no item names any more; anything else stays.

        The folder may be that of somebody's photos, so the name tells.
        """
        if source is None:
            return
        path = Path(source)
        own = _OWN.fullmatch(path.name)
        if own and path.parent == self._images.absolute() / own[1]:
            with contextlib.suppress(OSError):
                path.unlink()


def _items(snapshot: Snapshot, batch: list[Change]) -> dict[str, Item]:
    """Those items of some changes that a snapshot holds."""
    rows = {change.item: snapshot.row(change.item) for change in batch}
    held = [row for row in rows.values() if row is not None]
    return {item.id: item for item in snapshot.items(held)}


def _metadata(change: Change, old: Item | None) -> dict[str, Any] | None:
    """What an item is to have."""
    return old.metadata if change.metadata is None and old is not None else change.metadata
