"""Changing a gallery over to another bundle: every image is encoded anew, then all rows change at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from cir_infer.engine import Engine
from cir_infer.errors import CirError
from cir_infer.gallery import Gallery
from cir_infer.gallery.changes.reencoding import Reencoding
from cir_infer.gallery.rows.vectors import faults
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.items import Broken, Item
from cir_infer.indexing.pruning import NOT_ENCODED, Origin, PruneLimit, Refused, unbelievable
from cir_infer.indexing.report import Report
from cir_infer.indexing.run import COMMIT_ROWS, COMMIT_SECONDS
from cir_infer.inputs.locations import Location, is_gone

__all__ = ["reencode"]

_LOOK_UP = 512


def reencode(
    gallery: Gallery,
    engine: Engine,
    *,
    dtype: str | None = None,
    workers: int = 1,
    batch_size: int = 32,
    drop_broken: bool = False,
    prune_limit: PruneLimit = PruneLimit(),
    on_item: Callable[[], object] = lambda: None,
) -> Report:
    """Encode every item of a gallery with another bundle, then switch to the new rows in one commit.

    Queries, additions and removals go on meanwhile, with the old bundle. A run that was stopped is
    continued by running it again.

    Args:
        gallery: opened without an engine.
        engine: of the new bundle.
        dtype: of the new rows, by default as before.
        workers: decoding processes; 0 decodes in this one.
        batch_size: images in one run of the encoder.
        drop_broken: switch although some images cannot be encoded any more, and remove those items.
        prune_limit: how many may be removed so; more are not believed, and `Report.refused` says why.
        on_item: called once for each item that has been dealt with.

    Returns:
        What was done. If images are broken and `drop_broken` is not set, or they are more than may be
        removed, the gallery is still the old one, and what has been encoded is kept for the next run.

    Raises:
        GalleryError: another writer, a full disk.
    """
    started = time.perf_counter()
    work = gallery.reencoding(engine, dtype)
    run = _Run(gallery, engine, work, on_item)
    with Decoders(engine.manifest, workers) as decoders:
        while True:
            keys = [key for key in work.missing().tolist() if key not in run.given_up]
            try:
                for batch in decoders.batches(run.items(keys), batch_size):
                    for item, fault in batch.failed:
                        run.fail(item, fault.reason, fault.lasting)
                    run.encode(batch.items, batch.images)
            except BaseException:
                with suppress(CirError):
                    run.commit()
                raise
            run.commit()
            if run.given_up and (not drop_broken or run.is_refused(prune_limit)):
                break
            # Items that were added since the last look are missing still.
            if work.finish(drop=run.given_up):
                run.report.removed = len(run.given_up)
                gallery.compact()
                break
    run.report.seconds = time.perf_counter() - started
    return run.report


class _Run:
    def __init__(
        self, gallery: Gallery, engine: Engine, work: Reencoding, on_item: Callable[[], object]
    ) -> None:
        self.report = Report()
        self.given_up: set[int] = set()
        self._unread: list[str] = []
        self._gallery = gallery
        self._engine = engine
        self._work = work
        self._on_item = on_item
        self._keys: dict[str, int] = {}
        self._done: list[int] = []
        self._rows: list[npt.NDArray[np.float32]] = []
        self._committed = time.perf_counter()

    def items(self, keys: Sequence[int]) -> Iterator[Item]:
        """The items of some keys; those without an image are given up."""
        for key, item, source in self._of(keys):
            self._keys[item] = key
            found = Item(item, Location.parse(source or ""), "")
            if source is None:
                self.fail(found, "it was added without an image, as a vector")
            else:
                yield found

    def fail(self, item: Item, reason: str, lasting: bool = True) -> None:
        """Leave an item out, and remember why."""
        key = self._keys.pop(item.id)
        self.given_up.add(key)
        if not lasting and not is_gone(item.location.path):
            self._unread.append(f"{item.id}: {reason}")
        self.report.broken.append(Broken(item.id, str(item.location), f"{item.id}: {reason}"))
        self._on_item()

    def is_refused(self, limit: PruneLimit) -> bool:
        """Whether so much is left out that it is not removed; the report says why."""
        gone = [Origin(item, key, source or "") for key, item, source in self._of(self.given_up)]
        path, known = str(self._gallery.path), len(self._gallery)
        refused = unbelievable(path, gone, known, limit, NOT_ENCODED)
        if refused is None and self._unread and not limit.insists:
            count = len(self._unread)
            reason = (
                f"{path}: {count:,} of {known:,} items are there and cannot be read now, so they stay; "
                f"run this again, or pass --prune-limit {len(gone)} to be without them; the first: "
                f"{self._unread[0]}"
            )
            refused = Refused(path, count, known, reason)
        self.report.refused += [] if refused is None else [refused]
        return refused is not None

    def _of(self, keys: Iterable[int]) -> Iterator[tuple[int, str, str | None]]:
        """(key, id, source) of items, some at a time."""
        listed = list(keys)
        for start in range(0, len(listed), _LOOK_UP):
            yield from self._gallery.sources_of(listed[start : start + _LOOK_UP])

    def encode(self, items: list[Item], images: npt.NDArray[np.generic]) -> None:
        """Encode a batch; commit when enough has come together."""
        if items:
            started = time.perf_counter()
            rows = self._engine.encode_prepared(images)
            self.report.encoding_seconds += time.perf_counter() - started
            bad = faults(rows, self._work.dtype)
            for number in bad:
                self.fail(items[number], f"its vector {bad[number]}")
            good = [number for number in range(len(items)) if number not in bad]
            self._done += [self._keys.pop(items[number].id) for number in good]
            self._rows.append(rows[good])
        if len(self._done) >= COMMIT_ROWS or time.perf_counter() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put what has been encoded on the disk."""
        self._committed = time.perf_counter()
        if not self._done:
            return
        self._work.add(self._done, np.concatenate(self._rows))
        count = len(self._done)
        self._done, self._rows = [], []
        self.report.replaced += count
        self.report.encoded += count
        self._committed = time.perf_counter()
        for _ in range(count):
            self._on_item()
