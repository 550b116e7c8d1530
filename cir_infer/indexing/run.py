"""One indexing run: sources in, a gallery that matches them out."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.engine import Engine
from cir_infer.errors import CirError, DatasetError, GalleryError, shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.gallery import Held
from cir_infer.gallery.metadata import checked_ids
from cir_infer.gallery.metadata import encode as encode_metadata
from cir_infer.gallery.rows import faults
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.items import Broken, Item
from cir_infer.indexing.sources import Source

__all__ = ["Report", "index"]

COMMIT_ROWS = 4096
COMMIT_SECONDS = 10.0
_LOOK_UP = 512


@dataclass
class Report:
    """What a run did.

    Attributes:
        added: items that are new.
        replaced: items whose image or metadata had changed.
        unchanged: items that were up to date.
        removed: items whose image is gone.
        broken: items that could not be indexed; a version indexed earlier stays.
        seconds: how long it took.
        encoding_seconds: how much of that the encoder was at work.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    removed: int = 0
    broken: list[Broken] = field(default_factory=list)
    seconds: float = 0.0
    encoding_seconds: float = 0.0

    @property
    def encoded(self) -> int:
        """How many images went through the encoder into the gallery."""
        return self.added + self.replaced

    @property
    def rate(self) -> float:
        """Images encoded and stored a second."""
        return self.encoded / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "added": self.added,
            "replaced": self.replaced,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "broken": len(self.broken),
            "seconds": round(self.seconds, 3),
            "encoding_seconds": round(self.encoding_seconds, 3),
            "images_per_second": round(self.rate, 2),
        }


def index(
    gallery: Gallery,
    engine: Engine,
    sources: Sequence[Source],
    *,
    workers: int = 1,
    batch_size: int = 32,
    prune: bool = False,
    known_broken: Container[tuple[str, str]] = frozenset(),
    on_item: Callable[[], object] = lambda: None,
) -> Report:
    """Bring a gallery in step with its sources, as the only writer while it runs.

    What is indexed already and has not changed is passed over, so a run that was stopped is
    continued by running it again. Rows are committed every few seconds; an exception or an
    interrupt commits what has been encoded before it goes on.

    Args:
        gallery: opened with `engine`.
        engine: encodes the images.
        sources: see `open_source`.
        workers: decoding processes; 0 decodes in this one.
        batch_size: images in one run of the encoder.
        prune: also remove items that came from these sources and are no longer there.
        known_broken: (id, stamp) of items that are not worth another try.
        on_item: called once for each item that has been dealt with.

    Raises:
        GalleryError: another writer, a full disk.
        DatasetError: a manifest or shard cannot be read.
    """
    run = _Run(gallery, engine, known_broken, on_item)
    started = time.perf_counter()
    with gallery.writing(), Decoders(engine.manifest, workers) as decoders:
        try:
            for source in sources:
                for batch in decoders.batches(run.due(source), batch_size):
                    for item, reason in batch.failed:
                        run.give_up(item, reason)
                    run.encode(batch.items, batch.images)
        except BaseException:
            with suppress(CirError):
                run.commit()
            raise
        run.commit()
        if prune:
            run.prune(sources)
    run.report.seconds = time.perf_counter() - started
    return run.report


class _Run:
    def __init__(
        self,
        gallery: Gallery,
        engine: Engine,
        known_broken: Container[tuple[str, str]],
        on_item: Callable[[], object],
    ) -> None:
        self.report = Report()
        self._gallery = gallery
        self._engine = engine
        self._known_broken = known_broken
        self._on_item = on_item
        self._started_at = gallery.next_key
        # Which of the keys that were there before this run it has come across.
        self._met = np.zeros(self._started_at, np.bool_)
        self._queued: dict[str, bool] = {}  # id to whether the gallery holds it already
        self._items: list[Item] = []
        self._rows: list[npt.NDArray[np.float32]] = []
        self._committed = time.perf_counter()

    def due(self, source: Source) -> Iterator[Item]:
        """The items of a source that have to be encoded; the others are counted."""
        stream = source.items()
        more = True
        while more:
            chunk: list[Item] = []
            more = False
            try:
                for item in islice(stream, _LOOK_UP):
                    more = True
                    problem = item if isinstance(item, Broken) else _unfit(item)
                    if problem is not None:
                        self.fail(problem)
                    elif isinstance(item, Item):
                        chunk.append(item)
            except DatasetError as error:
                root = source.territory.root if source.territory else ""
                self.fail(Broken(root, root, str(error)))
                more = False
            held = self._gallery.held([item.id for item in chunk])
            for item in chunk:
                if self._is_due(item, held.get(item.id)):
                    yield item

    def _is_due(self, item: Item, held: Held | None) -> bool:
        if item.id in self._queued or (
            held is not None and (held.key >= self._started_at or self._met[held.key])
        ):
            self.fail(item.broken(f"id {shown(item.id)} came before in this run"))
            return False
        if held is not None:
            self._met[held.key] = True
            if held.stamp == item.stamp:
                self.report.unchanged += 1
                self._on_item()
                return False
        if (item.id, item.stamp) in self._known_broken:
            return False
        self._queued[item.id] = held is not None
        return True

    def fail(self, broken: Broken) -> None:
        """Remember why something is left out."""
        self.report.broken.append(broken)
        self._on_item()

    def give_up(self, item: Item, reason: str) -> None:
        """Leave out an item that was due."""
        del self._queued[item.id]
        self.fail(item.broken(reason))

    def encode(self, items: list[Item], images: npt.NDArray[Any]) -> None:
        """Encode a batch; commit when enough has come together."""
        if items:
            started = time.perf_counter()
            rows = self._engine.encode_prepared(images)
            self.report.encoding_seconds += time.perf_counter() - started
            bad = faults(rows, self._gallery.dtype)
            for number, item in enumerate(items):
                if number in bad:
                    self.give_up(item, f"its vector {bad[number]}")
            good = [number for number in range(len(items)) if number not in bad]
            self._items += [items[number] for number in good]
            self._rows.append(rows[good])
        if len(self._items) >= COMMIT_ROWS or time.perf_counter() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put what has been encoded into the gallery."""
        self._committed = time.perf_counter()
        if not self._items:
            return
        self._gallery.add_vectors(
            ids=[item.id for item in self._items],
            vectors=np.concatenate(self._rows),
            metadata=[item.metadata for item in self._items],
            sources=[str(item.location) for item in self._items],
            stamps=[item.stamp for item in self._items],
            existing="replace",
        )
        done, self._items, self._rows = self._items, [], []
        replaced = sum(self._queued.pop(item.id) for item in done)
        self.report.replaced += replaced
        self.report.added += len(done) - replaced
        self._committed = time.perf_counter()
        for _ in done:
            self._on_item()

    def prune(self, sources: Sequence[Source]) -> None:
        """Remove what came from these sources and was not met again, unless it could not be read."""
        unread = tuple(broken.source for broken in self.report.broken if broken.source)
        for source in sources:
            territory = source.territory
            if territory is None:
                continue
            gone = [
                item
                for item, key, origin in self._gallery.items_from(territory.root)
                if key < self._started_at
                and not self._met[key]
                and territory.owns(item, origin)
                and not origin.startswith(unread)
            ]
            self.report.removed += self._gallery.remove(gone) if gone else 0


def _unfit(item: Item) -> Broken | None:
    try:
        checked_ids([item.id])
        encode_metadata(item.metadata, item.id)
    except GalleryError as error:
        return item.broken(str(error))
    return None
