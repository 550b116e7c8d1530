"""Items that are put, changed and deleted over HTTP: what waits at the same time is one commit."""

from __future__ import annotations

import asyncio
import logging
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
from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.gallery.metadata.metadata import encode
from cir_infer.gallery.snapshot import Item
from cir_infer.serving.background import deliver
from cir_infer.serving.browsing import item_of
from cir_infer.serving.opened import Opened
from cir_infer.serving.pictures import Pictures, is_there
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
        self._pictures = Pictures(images)
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
        places = {change.item: self._pictures.place() for change in batch}
        with self._pictures.changing(gallery) as note:
            note.add(places.items())
            try:
                for change in batch:
                    self._pictures.keep(places[change.item], change.data or b"")
                with gallery.writing():
                    self._pictures.sweep(gallery)
                    old = _items(gallery.snapshot(), batch)
                    gone = self._own(old)
                    if gone:
                        note.add(gone.items())
                    gallery.add_vectors(
                        ids=[change.item for change in batch],
                        vectors=vectors,
                        metadata=[_metadata(change, old.get(change.item)) for change in batch],
                        sources=[str(places[change.item]) for change in batch],
                        existing="replace",
                    )
            except BaseException as error:
                # Where the change is there, or nobody knows, its items name these files.
                if not is_there(error):
                    note.forget(places.values())
                raise
            note.forget(gone.values())
        return set(old)

    def _own(self, items: dict[str, Item]) -> dict[str, Path]:
        """The pictures of some items, of those that have one of ours."""
        found = {item.id: self._pictures.own(item.source) for item in items.values()}
        return {item: path for item, path in found.items() if path is not None}

    def _described(self, batch: list[Change]) -> set[str]:
        gallery = batch[0].opened.gallery
        with gallery.writing():
            self._pictures.sweep(gallery)
            snapshot = gallery.snapshot()
            for change in batch:
                item_of(snapshot, change.item)
            ids, metadata = zip(*((change.item, change.metadata) for change in batch), strict=True)
            gallery.set_metadata(ids, metadata, merge=batch[0].merge)
        return {change.item for change in batch}

    def _removed(self, batch: list[Change]) -> set[str]:
        gallery = batch[0].opened.gallery
        with gallery.writing():
            self._pictures.sweep(gallery)
            old = _items(gallery.snapshot(), batch)
            gone = self._own(old)
            if gone:
                with self._pictures.changing(gallery) as note:
                    note.add(gone.items())
                    gallery.remove(list(old))
                    note.forget(gone.values())
            elif old:
                gallery.remove(list(old))
        return set(old)


def _items(snapshot: Snapshot, batch: list[Change]) -> dict[str, Item]:
    """Those items of some changes that a snapshot holds."""
    rows = {change.item: snapshot.row(change.item) for change in batch}
    held = [row for row in rows.values() if row is not None]
    return {item.id: item for item in snapshot.items(held)}


def _metadata(change: Change, old: Item | None) -> dict[str, Any] | None:
    """What an item is to have."""
    return old.metadata if change.metadata is None and old is not None else change.metadata
