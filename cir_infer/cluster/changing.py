"""Another bundle for a sharded gallery: new rows beside the old ones, then one switch for all shards.

The images are those that the gallery knows. New shards are filled by the writers of `indexing`, from a source
that lists what an old shard holds, so a run that was stopped is continued by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cir_infer.cluster.encoding import EngineOptions
from cir_infer.cluster.indexing import Encoders, Job, Resources
from cir_infer.cluster.parts import merged_report
from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery, Snapshot
from cir_infer.indexing.items import Broken, Item, Stamp
from cir_infer.indexing.pruning import NOT_ENCODED, Origin, PruneLimit, unbelievable
from cir_infer.indexing.report import Report
from cir_infer.indexing.source import Named, Source
from cir_infer.inputs.locations import Location
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.listing import Listing
from cir_infer.shards.succession import Gone, succeed

__all__ = ["HeldSource", "change_bundle"]

_TOGETHER = 4096


class HeldSource(Named):
    """What a gallery holds, as a source of images.

    Args:
        gallery: it.
        since: only items whose key is at least this.
    """

    def __init__(self, gallery: Gallery, since: int = 0) -> None:
        super().__init__(f"the items of {gallery.path}")
        self._gallery, self._since = gallery, since

    def count(self) -> int | None:
        """How many there are at most."""
        return len(self._gallery)

    def items(self) -> Iterator[Item | Broken]:
        """The items; one that was added as a vector, without an image, is broken."""
        snapshot = self._gallery.snapshot()
        live = snapshot.live_rows()
        live = live[snapshot.keys(live) >= self._since]
        for start in range(0, len(live), _TOGETHER):
            rows = live[start : start + _TOGETHER]
            keys = snapshot.keys(rows).tolist()
            stamps = self._gallery.stamps_of(keys)
            for key, item in zip(keys, snapshot.items(rows), strict=True):
                if item.source is None:
                    reason = "it was added without an image, as a vector, so it cannot be encoded anew"
                    yield Broken(item.id, "", f"{item.id}: {reason}")
                    continue
                # Where nobody said what an item was made of, another item of this id has another key.
                stamp = Stamp.parse(stamps.get(key)) or Stamp(f"key-{key}")
                place = Location.parse(item.source)
                yield Item(item.id, place, stamp.version, item.metadata, stamp.size, stamp.author)


class _Held(NamedTuple):
    """A shard's items, to be encoded anew."""

    job: Job
    path: str
    since: int

    def parts(self) -> Sequence[Source]:
        return [HeldSource(Gallery.open(self.path, read_only=True), self.since)]

    def finish(self, parts: Sequence[Source], report: Report) -> None:
        report.broken = [one for one in report.broken if one.source != parts[0].name]


def change_bundle(
    path: str | Path,
    engine: EngineOptions,
    resources: Resources = Resources(),
    *,
    dtype: str | None = None,
    batch_size: int = 32,
    drop_broken: bool = False,
    prune_limit: PruneLimit = PruneLimit(),
    address: str | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> tuple[Report, list[str]]:
    """Encode the images of a sharded gallery with another bundle, then let the new rows answer.

    Queries, additions and removals go on meanwhile, with the old bundle. The number of shards stays.

    Args:
        path: the folder.
        engine: of the new bundle.
        resources: of the cluster.
        dtype: of the new rows, by default as before.
        batch_size: images in one run of an encoder.
        drop_broken: change over although some images cannot be encoded any more, and leave them out.
        prune_limit: how many may be left out so; more are not believed, and `Report.refused` says why.
        address: see `connect`.
        on_progress: see `index_shards`.

    Returns:
        What was done, and the names of the old shards, for `remove_old`. If images are broken and
        `drop_broken` is not set, or they are more than may be left out, there are none: the gallery is still
        the old one, and what has been encoded is kept for the next run.

    Raises:
        GalleryError: it has rows of this bundle already; and see `succeed`.
        CirError: see `index_shards`.
    """
    with ShardedGallery(path, read_only=True) as gallery:
        known, count = gallery.listing, len(gallery.shards)
        dtype = dtype or gallery.shards[0].dtype
    encoders = Encoders(engine, resources, count, address)
    manifest = encoders.manifest
    if known.fingerprint == manifest.fingerprint:
        raise GalleryError(f"{path}: this bundle ({manifest.fingerprint}) has encoded its rows already")
    wanted = Listing(
        manifest.fingerprint,
        manifest.embedding_dim,
        manifest.tokens_per_item,
        ("",) * count,
        str(Path(engine.bundle).absolute()),  # for those who open the folder elsewhere
    )
    job, gone, whole = Job((), "", batch_size=batch_size), Gone(), Report()
    started = time.perf_counter()

    def fill(old: Sequence[Gallery], new: Sequence[Gallery]) -> int:
        plans, looks, left = [], [], 0
        for number, gallery in enumerate(old):
            snapshot, since, ids = gone.since(number, gallery)
            looks.append((snapshot, since))
            if since == 0:  # a run before may have encoded what has been removed since
                ids = _more_than(new[number], gallery)
            new[number].remove(ids, missing="skip")
            left += len(ids)
            plans.append(_Held(job, str(gallery.path), since))
        report = merged_report(encoders.run([str(one.path) for one in new], plans, on_progress))
        changed = report.added + report.replaced + report.moved + len(report.broken)
        broken = {one.id: one for one in (*whole.broken, *report.broken)}
        whole.count(report)
        left += sum(_describe(shard, *look) for shard, look in zip(new, looks, strict=True))
        whole.broken = [one for item, one in broken.items() if _is_missing(item, old, new)]
        if whole.broken and not drop_broken:
            raise _BrokenError
        lost = [Origin(one.id, 0, one.source) for one in whole.broken]
        refused = unbelievable(str(path), lost, sum(map(len, old)), prune_limit, NOT_ENCODED)
        if refused is not None:
            whole.refused.append(refused)
            raise _BrokenError
        whole.removed = len(whole.broken)
        return changed + left

    try:
        with encoders:
            names = succeed(path, known, wanted, dtype, fill, resume=True, missing=lambda: whole.removed)
    except _BrokenError:
        names = []
    whole.seconds = time.perf_counter() - started
    return whole, names


class _BrokenError(Exception):
    """Some images cannot be encoded."""


def _describe(new: Gallery, snapshot: Snapshot, since: int) -> int:
    """Tell what others told of items whose images are encoded already; returns of how many."""
    live, changed = snapshot.live_rows(), 0
    live = live[snapshot.keys(live) >= since]
    for start in range(0, len(live), _TOGETHER):
        items = snapshot.items(live[start : start + _TOGETHER])
        ids, metadata = [item.id for item in items], [item.metadata for item in items]
        changed += new.set_metadata(ids, metadata, missing="skip")
    return changed


def _is_missing(item: str, old: Sequence[Gallery], new: Sequence[Gallery]) -> bool:
    return any(item in gallery for gallery in old) and not any(item in gallery for gallery in new)


def _more_than(new: Gallery, old: Gallery) -> list[str]:
    """The ids that one gallery has and the other has not."""
    ids, found = new.ids, []
    for start in range(0, len(ids), _TOGETHER):
        part = ids[start : start + _TOGETHER]
        held = old.held(part)
        found += [item for item in part if item not in held]
    return found
