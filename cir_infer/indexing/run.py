"""One indexing run: sources in, a gallery that matches them out."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.engine import Engine
from cir_infer.errors import CirError, DatasetError
from cir_infer.gallery import Gallery
from cir_infer.gallery.rows.vectors import faults
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.encoding import Encoded, Encoder, LocalEncoder
from cir_infer.indexing.formats import describe_left_out
from cir_infer.indexing.items import Broken, Fault, Item, Stamp, is_unicode, unfit
from cir_infer.indexing.judging import Judge, Outcome, Verdict, again
from cir_infer.indexing.pruning import Origin, PruneLimit, seem_gone, unbelievable, under
from cir_infer.indexing.report import Report
from cir_infer.indexing.source import Source
from cir_infer.inputs.locations import Location, is_gone

__all__ = ["Report", "index", "index_encoded", "nothing_found"]

COMMIT_ROWS = 4096
COMMIT_SECONDS = 10.0
_LOOK_UP = 512


def index(
    gallery: Gallery,
    engine: Engine,
    sources: Sequence[Source],
    *,
    workers: int = 1,
    batch_size: int = 32,
    prune: bool = False,
    prune_limit: PruneLimit = PruneLimit(),
    replace_taken: bool = False,
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
        prune_limit: how much may be removed so; more is refused, and `Report.refused` says why.
        replace_taken: an id that the gallery has from another file goes to the file that comes now. By
            default the file is left out, as broken.
        known_broken: (id, stamp) of items that are not worth another try.
        on_item: called once for each item that has been dealt with.

    Raises:
        GalleryError: another writer, a full disk.
        DatasetError: a manifest or shard cannot be read.
    """
    with Decoders(engine.manifest, workers) as decoders:
        return index_encoded(
            gallery,
            LocalEncoder(engine, decoders),
            sources,
            batch_size=batch_size,
            prune=prune,
            prune_limit=prune_limit,
            replace_taken=replace_taken,
            known_broken=known_broken,
            on_item=on_item,
        )


def index_encoded(
    gallery: Gallery,
    encoder: Encoder,
    sources: Sequence[Source],
    *,
    batch_size: int,
    prune: bool = False,
    prune_limit: PruneLimit = PruneLimit(),
    replace_taken: bool = False,
    known_broken: Container[tuple[str, str]] = frozenset(),
    on_item: Callable[[], object] = lambda: None,
) -> Report:
    """`index`, whoever encodes.

    Args:
        gallery: of the bundle that encodes.
        encoder: it.
        sources: see `index`, as what follows.
        batch_size: images in one run of the encoder.
        prune: see `index`.
        prune_limit: see `index`.
        replace_taken: see `index`.
        known_broken: see `index`.
        on_item: see `index`.

    Raises:
        CirError: see `index`.
    """
    started = time.perf_counter()
    with gallery.writing():
        run = _Run(gallery, Judge(gallery, replace_taken), known_broken, on_item)
        known = [len(run.owned(source)) for source in sources] if prune else []
        try:
            for source in sources:
                for batch in encoder.batches(run.due(source), batch_size):
                    run.take(batch)
        except BaseException:
            with suppress(CirError):
                run.commit()
            raise
        run.commit()
        if prune:
            run.prune(sources, known, prune_limit)
        run.rehome(sources)
    run.report.seconds = time.perf_counter() - started
    return run.report


class _Task(NamedTuple):
    item: Item
    outcome: Outcome
    digest: str | None
    told: Mapping[str, Any] | None


class _Run:
    def __init__(
        self,
        gallery: Gallery,
        judge: Judge,
        known_broken: Container[tuple[str, str]],
        on_item: Callable[[], object],
    ) -> None:
        self.report = Report()
        self._gallery = gallery
        self._judge = judge
        self._known_broken = known_broken
        self._on_item = on_item
        self._queued: dict[str, _Task] = {}
        self._done: list[_Task] = []
        self._rows: list[npt.NDArray[np.float32]] = []
        self._unread: list[str] = []
        self._committed = time.perf_counter()

    # ---- from sources to images that have to be encoded

    def due(self, source: Source) -> Iterator[Item]:
        """The items of a source that have to be encoded; all else is dealt with on the way."""
        shown_any = False
        stream = source.items()
        more = True
        while more:
            chunk: dict[str, Item] = {}
            more = False
            try:
                for entry in islice(stream, _LOOK_UP):
                    shown_any = more = True
                    problem = entry if isinstance(entry, Broken) else unfit(entry)
                    if problem is not None:
                        self.fail(problem)
                    elif isinstance(entry, Item) and not self._came_before(entry, chunk):
                        chunk[entry.id] = entry
            except DatasetError as error:
                self._unread += source.territory.roots if source.territory else ()
                self.fail(Broken(source.name, source.name, str(error)))
                shown_any, more = True, False
            yield from self._judged(list(chunk.values()))
        self.report.left_out.update(source.survey.left_out)
        self._unread += source.survey.unseen
        if not shown_any:
            # That nothing is there is no reason to believe that it was not removed; `prune` judges that.
            self.report.broken.append(Broken(source.name, source.name, nothing_found(source)))

    def _came_before(self, item: Item, chunk: Mapping[str, Item]) -> bool:
        """Whether an item of this id is waiting already; says so."""
        task = self._queued.get(item.id)
        earlier = chunk.get(item.id) if task is None else task.item
        if earlier is None:
            return False
        verdict = again(item, earlier.location, earlier.stamp)
        self._leave(item, verdict)
        return True

    def _leave(self, item: Item, verdict: Verdict) -> None:
        if verdict.action == "broken":
            self.fail(item.broken(verdict.reason))
            return
        if verdict.action == "skip":
            self.report.left_out[verdict.reason] += 1
        else:
            self.report.unchanged += 1
        self._on_item()

    def _judged(self, items: list[Item]) -> Iterator[Item]:
        for item, verdict in self._judge.judge(items):
            task = _Task(item, verdict.outcome, verdict.digest, verdict.told)
            if verdict.action in ("keep", "skip", "broken"):
                self._leave(item, verdict)
            elif verdict.row is not None:
                self._queued[item.id] = task
                self._done.append(task)
                self._rows.append(verdict.row[None])
                if len(self._done) >= COMMIT_ROWS:
                    self.commit()
            elif (item.id, item.stamp) in self._known_broken:
                self.report.passed_over.append((item.id, item.stamp))
            else:
                self._queued[item.id] = task
                yield item

    def fail(self, broken: Broken) -> None:
        """Remember why something is left out."""
        self.report.broken.append(broken)
        self._unread.append(broken.source)
        self._on_item()

    def give_up(self, item: Item, fault: Fault) -> None:
        """Leave out an item that was due."""
        del self._queued[item.id]
        if fault.lasting:
            self.report.given_up.append((item.id, item.stamp))
        self.fail(item.broken(fault.reason))

    # ---- into the gallery

    def take(self, batch: Encoded) -> None:
        """Take over what a batch has become; commit when enough has come together."""
        for item, fault in batch.failed:
            self.give_up(item, fault)
        self.report.encoding_seconds += batch.seconds
        items, rows = batch.items, batch.rows
        if items:
            bad = faults(rows, self._gallery.dtype)
            for number, item in enumerate(items):
                if number in bad:
                    self.give_up(item, Fault(f"its vector {bad[number]}"))
            good = [number for number in range(len(items)) if number not in bad]
            for number in good:
                task = self._queued[items[number].id]
                self._done.append(task._replace(digest=batch.digests[number]))
            self._rows.append(rows[good])
            self.report.encoded += len(good)
        if len(self._done) >= COMMIT_ROWS or time.perf_counter() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put what has been encoded or found again into the gallery."""
        self._committed = time.perf_counter()
        if not self._done:
            return
        self._gallery.add_vectors(
            ids=[task.item.id for task in self._done],
            vectors=np.concatenate(self._rows),
            metadata=[task.item.metadata if task.told is None else task.told for task in self._done],
            sources=[str(task.item.location) for task in self._done],
            stamps=[str(Stamp(task.item.stamp, task.digest, task.item.author)) for task in self._done],
            existing="replace",
        )
        done, self._done, self._rows = self._done, [], []
        for task in done:
            del self._queued[task.item.id]
            setattr(self.report, task.outcome, getattr(self.report, task.outcome) + 1)
        self._committed = time.perf_counter()
        for _ in done:
            self._on_item()

    # ---- out of the gallery

    def owned(self, source: Source) -> list[Origin]:
        """The items of the gallery that came from a source."""
        territory = source.territory
        if territory is None:
            return []
        items = {
            key: Origin(item, key, origin)
            for root in filter(is_unicode, territory.roots)
            for item, key, origin in self._gallery.items_from(root)
            if territory.owns(item, origin)
        }
        return list(items.values())

    def rehome(self, sources: Sequence[Source]) -> None:
        """Note where items that were left behind would be now; later runs know by that whose they are."""
        left = [pair for source in sources for pair in self._left_behind(source)]
        for start in range(0, len(left), COMMIT_ROWS):
            some = left[start : start + COMMIT_ROWS]
            keys = [origin.key for origin, _ in some]
            snapshot, stamps = self._gallery.snapshot(), self._gallery.stamps_of(keys)
            rows = snapshot.rows_of(np.array(keys, np.int64))
            self._gallery.add_vectors(
                ids=[origin.id for origin, _ in some],
                vectors=np.stack([snapshot.vector(int(row)) for row in rows]),
                metadata=snapshot.metadata(rows),
                sources=[place for _, place in some],
                stamps=[stamps.get(key) for key in keys],
                existing="replace",
            )

    def _left_behind(self, source: Source) -> list[tuple[Origin, str]]:
        """Items of a source that are known at the place from which all the others were moved in this run.

        Returns:
            With the place where they would be now.
        """
        territory = source.territory
        if territory is None:
            return []
        left: dict[int, tuple[Origin, str]] = {}
        for (before, now), followed in self._judge.moves.items():
            for root in territory.roots:
                former = before + root[len(now) :]
                # A folder that is still there may be another library with some images of this one.
                if not root.startswith(now + "/") or not is_gone(former.rstrip("/#")):
                    continue
                found = [
                    (Origin(item, key, origin), root + origin[len(former) :])
                    for item, key, origin in self._gallery.items_from(former)
                    if territory.owns(item, root + origin[len(former) :])
                ]
                if len(found) <= followed:
                    left |= {origin.key: (origin, place) for origin, place in found}
        return list(left.values())

    def _of_renamed_file(self, source: Source) -> list[Origin]:
        """Items of a shard or table that was renamed within its folder to what this source is now.

        Its name stands in their ids, so those are new; the rows were taken over.
        """
        roots = source.territory.roots if source.territory else ()
        keys = [key for key, place in self._judge.followed.items() if place.startswith(roots)]
        found = [
            Origin(item, key, origin)
            for key, item, origin in self._gallery.sources_of(keys)
            if origin is not None and not Location.parse(origin).whole
        ]
        folder = Location.parse(source.name).folder
        return [origin for origin in found if Location.parse(origin.source).folder == folder]

    def prune(self, sources: Sequence[Source], known: Sequence[int], limit: PruneLimit) -> None:
        """Remove what came from these sources and was not met again.

        What could not be read is not taken for gone, and much at once is not believed.

        Args:
            sources: of this run.
            known: how many items each of them had before it.
            limit: how much may be removed.
        """
        is_unread = under(path.rstrip("#") for path in self._unread)
        judge = self._judge
        for source, before in zip(sources, known, strict=True):
            left = [origin for origin, _ in self._left_behind(source)] + self._of_renamed_file(source)
            items = self.owned(source) + left
            # Of a library that was moved, no item was known at its new place.
            before = max(before, len(items)) if left else before
            missed = [
                origin
                for origin in items
                if origin.key < judge.started_at
                and not judge.met[origin.key]
                and not is_unread(origin.source)
                and not is_unread(Location.parse(origin.source).path)
            ]
            if not (gone := seem_gone(missed)):
                continue
            found_again = judge.are_elsewhere(gone, items, source.territory)
            lost = [origin for origin, again in zip(gone, found_again, strict=True) if not again]
            refused = unbelievable(source.name, lost, before, limit)
            if refused is not None:
                self.report.refused.append(refused)
                gone = [origin for origin, again in zip(gone, found_again, strict=True) if again]
            if gone:
                self._gallery.remove([origin.id for origin in gone])
            self.report.removed += sum(origin.key not in judge.followed for origin in gone)


def nothing_found(source: Source) -> str:
    """What is said of a source without a single image."""
    left_out = source.survey.left_out
    beside = f"; left out: {describe_left_out(left_out)}" if left_out else ""
    return f"{source.name}: no image was found here{beside}"
