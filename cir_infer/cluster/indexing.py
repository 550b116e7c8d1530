"""Encoding in bulk on Ray: every shard has one writer, and all of them have images decoded and encoded.

A shard's writer is an actor that runs what `cir-index` runs, over the part of the sources that lies in its
shard. It judges, commits and prunes as ever; images are decoded in tasks on any processor of the cluster and
encoded on a pool of actors. What dies is done again: tasks and engines by Ray, a writer by being run once
more. An addition that is there already is found unchanged, so a run is a resume, whatever ended the one
before it.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cir_infer.cluster.encoding import (
    EngineOptions,
    Pool,
    RayEncoder,
    StoppedError,
    start_engine,
)
from cir_infer.cluster.parts import Part, merged_report
from cir_infer.errors import GalleryError, ShardError, UsageError, shown
from cir_infer.indexing.pruning import PruneLimit
from cir_infer.indexing.report import Report
from cir_infer.indexing.source import Source
from cir_infer.runtime.device_names import ON_GPU
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.ray_cluster import cause_of, connect, machines_of, told_as_shard_error

__all__ = ["Encoders", "Job", "Plan", "Resources", "index_shards", "opened_sources"]

_POLL = 0.5
_DEATHS = 20
"""Deaths of a writer, without one item between them, after which it is given up."""
_STOPPING = 60.0


class Job(NamedTuple):
    """What is to be indexed, and how; see `cir_infer.indexing.run.index`.

    Attributes:
        sources: as `cir-index` takes them.
        folder: from which relative ones are meant; it decides no id.
    """

    sources: Sequence[str]
    folder: str
    prefix: str | None = None
    batch_size: int = 32
    prune: bool = False
    prune_limit: PruneLimit = PruneLimit()
    replace_taken: bool = False


class Resources(NamedTuple):
    """What of the cluster is used.

    Attributes:
        encoders: engines; None for one on each GPU, or on each machine where no GPU is used.
        gpus: that Ray keeps for an engine; None for 1 where the cluster has some and the device may use it.
    """

    encoders: int | None = None
    gpus: float | None = None


def opened_sources(job: Job, features: bool) -> list[Source]:
    """The sources of a job.

    Args:
        job: it.
        features: whether the bundle reads features, and so .npy files.

    Raises:
        UsageError: there is no such source.
    """
    from cir_infer.indexing.formats import image_endings
    from cir_infer.indexing.sources import open_sources

    return open_sources(job.sources, image_endings(features), job.prefix)


class Plan(Protocol):
    """What one shard's writer has to do; it is told anew whenever the writer is run again."""

    @property
    def job(self) -> Job:
        """How."""
        ...

    def parts(self) -> Sequence[Source]:
        """The sources of this shard. Called where the writer is."""
        ...

    def finish(self, parts: Sequence[Source], report: Report) -> None:
        """Put right what the shard's run could not know."""
        ...


class _Indexing(NamedTuple):
    """A shard's part of a job."""

    job: Job
    number: int
    shards: int
    features: bool

    def parts(self) -> Sequence[Source]:
        with suppress(OSError):  # where every source is named from the root it need not be here
            os.chdir(self.job.folder)
        return [Part(source, self.number, self.shards) for source in opened_sources(self.job, self.features)]

    def finish(self, parts: Sequence[Source], report: Report) -> None:
        for part in parts:
            assert isinstance(part, Part)
            part.without_emptiness(report)


class _Writer:
    """What runs in an actor: the one writer of a shard."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._dealt, self._stopping = 0, False
        self._alone = threading.Lock()

    def progress(self) -> int:
        return self._dealt

    def stop(self) -> None:
        self._stopping = True

    def run(self, plan: Plan, pool: Pool, ahead: int) -> Report:
        # Whoever lost sight of this actor for a while asks once more what it may still be at.
        with self._alone:
            return self._run(plan, pool, ahead)

    def _run(self, plan: Plan, pool: Pool, ahead: int) -> Report:
        from cir_infer.gallery import Gallery
        from cir_infer.indexing.run import index_encoded

        job, self._dealt = plan.job, 0
        parts = plan.parts()
        # A writer that died has let go of the lock; how soon, its machine says.
        with Gallery.open(self._path, wait=_STOPPING) as gallery:
            try:
                report = index_encoded(
                    gallery,
                    RayEncoder(pool, ahead, lambda: self._stopping),
                    parts,
                    batch_size=job.batch_size,
                    prune=job.prune,
                    prune_limit=job.prune_limit,
                    replace_taken=job.replace_taken,
                    on_item=self._one,
                )
            except StoppedError:
                return Report()
        plan.finish(parts, report)
        return report

    def _one(self) -> None:
        self._dealt += 1


class Encoders:
    """Engines on a cluster, and the writers that use them, until the end of a `with`.

    Args:
        engine: how the engines are opened.
        resources: of the cluster.
        shards: how many writers there will be.
        address: see `connect`.

    Attributes:
        manifest: of the bundle, photos turned as they will be.

    Raises:
        CirError: there is no cluster, or the engine does not open.
    """

    def __init__(self, engine: EngineOptions, resources: Resources, shards: int, address: str | None) -> None:
        from cir_infer.bundle import Bundle
        from cir_infer.bundle.orientation import oriented

        self.manifest = oriented(Bundle(engine.bundle).manifest, engine.exif_orientation)
        self._engine, self._resources, self._shards, self._address = engine, resources, shards, address
        self._handles: list[Any] = []
        self._ray: Any = None

    def __enter__(self) -> Encoders:
        self._ray = connect(self._address)
        try:
            with told_as_shard_error("starting encoders"):
                self._pool, self._ahead = _pool(
                    self._ray, self._engine, self._resources, self.manifest.image, self._shards, self._handles
                )
                _wait_for(self._ray, self._pool.engines)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self._end()

    def _end(self) -> None:
        while self._handles:
            with suppress(Exception):  # it may be gone, and the cluster too
                self._ray.kill(self._handles.pop(), no_restart=True)

    def run(
        self,
        places: Sequence[str],
        plans: Sequence[Plan],
        on_progress: Callable[[int], object] = lambda _: None,
    ) -> list[Report]:
        """Let a writer for each gallery do what its plan says, again whenever it dies.

        Raises:
            CirError: see `index_shards`.
        """
        kind = self._ray.remote(_Writer).options(
            max_restarts=-1, max_concurrency=4, num_cpus=0, scheduling_strategy="SPREAD"
        )
        writers = [kind.remote(place) for place in places]
        self._handles += writers
        calls = [
            functools.partial(writer.run.remote, plan, self._pool, self._ahead)
            for writer, plan in zip(writers, plans, strict=True)
        ]
        with told_as_shard_error("indexing"):
            reports = _watched(self._ray, writers, calls, on_progress)
        with told_as_shard_error("ending the writers"):
            for writer in writers:
                self._ray.kill(writer, no_restart=True)
        return reports


def index_shards(
    gallery: ShardedGallery,
    engine: EngineOptions,
    job: Job,
    resources: Resources = Resources(),
    *,
    address: str | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Report:
    """Bring a sharded gallery in step with its sources; see `cir_infer.indexing.run.index`.

    Sources and shards have to be at their paths on every machine. An interrupt commits what has been
    encoded before it goes on.

    Args:
        gallery: of the bundle.
        engine: encodes.
        job: the sources.
        resources: of the cluster.
        address: see `connect`.
        on_progress: called now and then with the number of items that have been dealt with.

    Returns:
        What was done. What a writer had committed before it died counts as unchanged. The time is counted
        from when the encoders are ready.

    Raises:
        CirError: see `index`; a shard's writer dies again and again; there is no cluster.
    """
    from cir_infer.bundle.manifest import FeatureInput

    count = len(gallery.shards)
    encoders = Encoders(engine, resources, count, address)
    if gallery.fingerprint != encoders.manifest.fingerprint:
        raise GalleryError(
            f"{gallery.path}: has rows of {shown(gallery.fingerprint, 80)}, the bundle {engine.bundle} makes "
            f"those of {encoders.manifest.fingerprint}; use the bundle that encoded them, or change to this "
            "one with `cir-cluster change`"
        )
    features = isinstance(encoders.manifest.image, FeatureInput)
    places = [str(Path(shard.path).absolute()) for shard in gallery.shards]
    with encoders:
        started = time.perf_counter()
        plans = [_Indexing(job, number, count, features) for number in range(count)]
        report = merged_report(encoders.run(places, plans, on_progress))
        report.seconds = time.perf_counter() - started
    return report


def _pool(
    ray: Any, engine: EngineOptions, resources: Resources, spec: Any, shards: int, handles: list[Any]
) -> tuple[Pool, int]:
    """The engines, and how many batches each writer has in work."""
    there = ray.cluster_resources()
    processors, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0))
    uses_gpu = engine.device in ("auto", *ON_GPU)
    wanted = resources.gpus if resources.gpus is not None else float(min(gpus, 1) if uses_gpu else 0)
    machines = machines_of(ray)
    count = resources.encoders or (gpus if wanted else machines) or 1
    if wanted * count > gpus:
        raise UsageError(f"{count} encoders want {wanted * count:g} GPUs, and the cluster has {gpus}")
    # A processor for each engine, as far as that leaves some to decode.
    kept = 1.0 if processors > count else 0.0
    handles += [start_engine(engine, kept, wanted) for _ in range(count)]
    decoders = max(1, processors - int(kept) * count)
    ahead = max(2, -(-(2 * decoders + 2 * count) // shards))
    return Pool(list(handles), ray.put(spec)), ahead


def _wait_for(ray: Any, engines: Sequence[Any]) -> None:
    """Wait until every engine is open."""
    from ray.exceptions import RayError

    try:
        ray.get([one.ready.remote() for one in engines])
    except RayError as error:
        if (cause := cause_of(error)) is not None:
            raise cause from error
        said = str(error).strip().split("\n")[-1]
        raise ShardError(f"an encoder does not start on Ray: {shown(said, 300)}") from error


def _watched(
    ray: Any, writers: Sequence[Any], calls: Sequence[Callable[[], Any]], on_progress: Callable[[int], object]
) -> list[Report]:
    """Run every writer to its end, again when it dies."""
    from ray.exceptions import RayError

    reports: dict[int, Report] = {}
    running = {call(): number for number, call in enumerate(calls)}
    dealt, deaths = [0] * len(writers), [0] * len(writers)
    try:
        while running:
            done, _ = ray.wait(list(running), timeout=_POLL)
            for reference in done:
                number = running.pop(reference)
                try:
                    reports[number] = ray.get(reference)
                except RayError as error:
                    if (cause := cause_of(error)) is not None:
                        raise cause from error
                    deaths[number] += 1
                    if deaths[number] > _DEATHS:
                        raise ShardError(
                            f"the writer of shard {number} died {_DEATHS} times without indexing an item "
                            f"({type(error).__name__}); see Ray's logs, then run this again to go on"
                        ) from error
                    running[calls[number]()] = number
            for number in running.values():
                with suppress(RayError):
                    now = ray.get(writers[number].progress.remote(), timeout=5)
                    deaths[number] = 0 if now > dealt[number] else deaths[number]
                    dealt[number] = now
            on_progress(sum(dealt))
    except KeyboardInterrupt:
        for number in running.values():
            writers[number].stop.remote()
        ray.wait(list(running), num_returns=len(running), timeout=_STOPPING)
        raise
    return [reports[number] for number in range(len(writers))]
