"""Shards as actors of Ray: started again when they die, on as many machines as a Ray cluster has.

Needs the extra `[ray]`, of which Ray's core alone is used. Nothing else imports this module.

    shards = RayShards.create("shop", "shop.shards", replicas=2)
    searcher = ShardedSearcher("artemis.cir", shards.groups, deadline=0.5)

Actors are named and outlive the program that started them, so any number of programs can ask them
(`RayShards.attach`). Retries are the searcher's (`cir_infer.shards.fanout`), and none are Ray's.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cir_infer.engine import Engine
from cir_infer.errors import CirError, ShardError, UsageError, shown
from cir_infer.gallery.arguments import checked_path
from cir_infer.inputs.arguments import checked_count, checked_seconds
from cir_infer.shards.following import FollowingSearcher
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.listing import read_listing
from cir_infer.shards.placement import Placement
from cir_infer.shards.ray_actor import Actor, Actors, RayShard
from cir_infer.shards.ray_cluster import NAMESPACE, PATIENCE, connect, joined, told_as_shard_error
from cir_infer.shards.searcher import ShardedSearcher

__all__ = ["Actors", "RayShard", "RayShards", "connect", "follow"]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")
_AT_ONCE = 8
"""Calls that an actor computes side by side."""


class RayShards:
    """The actors of a sharded gallery, under a name.

    Attributes:
        name: of all of them.
        version: 1 for the first actors of this name, 2 for those that took their place, and so on.
        groups: for `ShardedSearcher`: the replicas of each shard.
    """

    def __init__(
        self, name: str, version: int, groups: Sequence[Sequence[RayShard]], handles: Sequence[Any]
    ) -> None:
        self.name, self.version, self.groups = name, version, [list(group) for group in groups]
        self._handles = list(handles)

    @classmethod
    def create(
        cls,
        name: str,
        path: str | Path,
        replicas: int = 1,
        *,
        address: str | None = None,
        scorer: str = "cpu",
        threads: int | None = 1,
        processors: float = 0,
        owned: bool = False,
    ) -> RayShards:
        """Start the actors of a sharded gallery, and wait until all of them answer.

        The replicas of a shard are on different machines where there are as many, and stay so: one whose
        machine dies waits for another that has none of them. On fewer machines they share, and a warning
        is logged. Each opens its gallery by its path, so the folder has to be there on every machine: on a
        shared file system, or as backups at the same place (`Gallery.backup`).

        Args:
            name: letters, digits, - and _; of no other actors that run.
            path: the folder of the sharded gallery.
            replicas: of each shard.
            address: see `connect`.
            scorer: see `cir_infer.scoring.make_scorer`.
            threads: CPU threads of a call; None for every core.
            processors: that Ray keeps for an actor; 0 for a share of what is there.
            owned: end with this process; else they run until `stop`.

        Raises:
            GalleryError: no sharded gallery, or damaged.
            ShardError: an actor does not start; none is left running.
            UsageError: the name is taken, or an argument is not what is said above.
        """
        count = checked_count("replicas", replicas)
        _check_name(name)
        folder = checked_path("path", path).absolute()
        read_listing(folder)
        ray = connect(address)
        if _running(name):
            raise UsageError(
                f"there are actors {shown(name)} already; stop them (`cir-cluster stop {name}`), or choose "
                "another name"
            )
        return cls._started(ray, name, 1, Actors(str(folder), count, scorer, threads, processors), owned)

    @classmethod
    def _started(cls, ray: Any, name: str, version: int, actors: Actors, owned: bool) -> RayShards:
        """Start actors for the shards that the folder has now."""
        with ShardedGallery(actors.folder, read_only=True) as gallery:
            places = [str(Path(shard.path).absolute()) for shard in gallery.shards]
            actors = actors._replace(bundle=gallery.listing.bundle)
        count, handles = actors.replicas, list[Any]()
        groups: list[list[RayShard]] = []
        try:
            with told_as_shard_error(f"starting the actors {name}"):
                kind = ray.remote(Actor)
                for number, place in enumerate(places):
                    groups.append([])
                    spot = Placement.of(ray, f"{name}/{version}/{number}", count, actors.processors, owned)
                    for replica in range(count):
                        key = (version, number, replica, len(places), count)
                        handle = kind.options(
                            name="/".join(map(str, (name, *key))),
                            namespace=NAMESPACE,
                            lifetime=None if owned else "detached",
                            max_restarts=-1,
                            max_task_retries=0,
                            max_concurrency=_AT_ONCE,
                            num_cpus=actors.processors,
                            scheduling_strategy=spot.strategy(replica),
                        ).remote(place, actors)
                        handles.append(handle)
                        groups[-1].append(RayShard(handle, _place(name, number, replica, place)))
            for group in groups:
                for shard in group:
                    shard.about(PATIENCE)
        except BaseException:
            with suppress(ShardError):  # what failed is told
                _end(ray, name, version, len(places), handles)
            raise
        return cls(name, version, groups, handles)

    @classmethod
    def attach(cls, name: str, *, address: str | None = "auto") -> RayShards:
        """Find the actors that somebody has started; of several versions the newest that is complete.

        Args:
            name: that they were given.
            address: see `connect`.

        Raises:
            ShardError: there are none, or not all.
        """
        _check_name(name)
        ray = connect(address)
        known = _running(name)
        version = _newest(known)
        if version is None:
            left = f"end those with `cir-cluster stop {name}`, then " if known else ""
            raise ShardError(
                f"of the actors {shown(name)} {len(known)} run; {left}start them with "
                f"`cir-cluster create {name} FOLDER`"
            )
        return cls._attached(ray, name, version, known)

    @classmethod
    def _attached(cls, ray: Any, name: str, version: int, known: dict[tuple[int, ...], str]) -> RayShards:
        mine = {key: entry for key, entry in sorted(known.items()) if key[0] == version}
        with told_as_shard_error(f"attaching to the actors {name}"):
            handles = {key: ray.get_actor(entry, namespace=NAMESPACE) for key, entry in mine.items()}
        groups: dict[int, list[RayShard]] = {}
        for key, handle in handles.items():
            groups.setdefault(key[1], []).append(RayShard(handle, _place(name, key[1], key[2], "")))
        return cls(name, version, list(groups.values()), list(handles.values()))

    @classmethod
    def newest(cls, name: str, *, address: str | None = "auto") -> int | None:
        """The newest version that is complete, None where there is none.

        Raises:
            ShardError: there is no cluster.
        """
        _check_name(name)
        connect(address)
        return _newest(_running(name))

    def renewed(self, grace: float = 10.0) -> RayShards:
        """Start actors for the shards that the folder has now, then end these.

        From when all of the new ones answer `attach` gives them, so no program sees some of both. What a run
        before this one has started and not ended goes too.

        Args:
            grace: seconds for which the old ones go on answering programs that have not noticed.

        Raises:
            ShardError: no actor says how it was started, or a new one does not start: these go on.
            GalleryError: the folder's shards cannot be opened.
        """
        grace = checked_seconds("grace", grace)
        import ray

        actors = self.started_as()
        newest = max((key[0] for key in _running(self.name)), default=self.version)
        fresh = self._started(ray, self.name, newest + 1, actors, False)
        time.sleep(grace)
        _end_all(ray, self.name, fresh.version)
        return fresh

    @classmethod
    def end(cls, name: str, *, address: str | None = "auto") -> int:
        """End all actors of a name, also those that a killed `create` has left. Galleries stay as they are.

        Args:
            name: that they were given.
            address: see `connect`.

        Returns:
            How many there were.

        Raises:
            ShardError: there is no cluster.
        """
        _check_name(name)
        return _end_all(connect(address), name)

    def started_as(self) -> Actors:
        """How the actors were started, as the first that answers says.

        Raises:
            ShardError: none answers.
        """
        error: CirError | None = None
        for group in self.groups:
            for shard in group:
                try:
                    return shard.started_as(PATIENCE)
                except CirError as found:
                    error = found
        raise error or ShardError(f"there are no actors {self.name}")

    def restart(self) -> None:
        """Start every actor anew, one after the other: of each shard all others answer meanwhile.

        Raises:
            ShardError: one does not come back; those after it were not touched.
        """
        for group in self.groups:
            for shard in group:
                before = shard.pid(PATIENCE)
                shard.restart()
                until = time.monotonic() + PATIENCE
                while True:
                    with suppress(ShardError):
                        if shard.pid(1.0) != before:
                            break
                    if time.monotonic() > until:
                        raise ShardError(f"{shard.place} has not come back within {PATIENCE:g} s")

    def each(self, ask: Callable[[RayShard], T]) -> list[list[T | CirError]]:
        """What each replica of each shard says, or why it does not."""

        def tried(shard: RayShard) -> T | CirError:
            try:
                return ask(shard)
            except CirError as error:
                return error

        return [[tried(shard) for shard in group] for group in self.groups]

    def stop(self) -> None:
        """End the actors, for everybody. Their galleries stay as they are."""
        import ray

        _end(ray, self.name, self.version, len(self.groups), self._handles)

    def __enter__(self) -> RayShards:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.stop()


def follow(
    name: str,
    bundle: str | Path | Engine | None = None,
    *,
    address: str | None = "auto",
    every: float = 1.0,
    **options: Any,
) -> FollowingSearcher:
    """A searcher over actors that goes over by itself when others take their place.

    Also to those of a cluster that was started anew: until they are there, queries are a `ShardError`.

    Args:
        name: that the actors were given.
        bundle: see `ShardedSearcher`; None for the one that the sharded gallery names, or none where it
            names none.
        address: see `connect`.
        every: seconds between two looks.
        options: of `ShardedSearcher`.

    Raises:
        CirError: see `RayShards.attach` and `ShardedSearcher`.
    """

    def opened() -> ShardedSearcher:
        shards = RayShards.attach(name, address=address)
        chosen = shards.started_as().bundle if bundle is None else bundle
        return ShardedSearcher(chosen, shards.groups, **options)

    def version() -> tuple[int | None, int]:
        return RayShards.newest(name, address=address), joined()

    return FollowingSearcher(version, opened, every)


def _running(name: str) -> dict[tuple[int, ...], str]:
    """The names of actors by version, shard, replica and how many there are of both."""
    from ray.util import list_named_actors

    pattern = re.compile(rf"{re.escape(name)}/(\d+)/(\d+)/(\d+)/(\d+)/(\d+)")
    with told_as_shard_error(f"looking for the actors {name}"):
        entries = list_named_actors(all_namespaces=True)
    return {
        tuple(map(int, found.groups())): entry["name"]
        for entry in entries
        if entry["namespace"] == NAMESPACE and (found := pattern.fullmatch(entry["name"]))
    }


def _newest(known: Iterable[tuple[int, ...]]) -> int | None:
    """The newest version of which every actor is there."""
    counts = Counter((key[0], key[3], key[4]) for key in known)
    complete = [version for (version, shards, replicas), n in counts.items() if n == shards * replicas]
    return max(complete, default=None)


def _end(ray: Any, name: str, version: int, shards: int, handles: Sequence[Any]) -> None:
    """End actors, and give back where they were."""
    with told_as_shard_error(f"ending the actors {name}"):
        for handle in handles:
            ray.kill(handle, no_restart=True)
        for number in range(shards):
            with suppress(ValueError):  # one replica has none
                ray.util.remove_placement_group(ray.util.get_placement_group(f"{name}/{version}/{number}"))


def _end_all(ray: Any, name: str, below: int | None = None) -> int:
    """End what runs under a name, of all versions or those below one, whole or not; how many there were."""
    known = {key: entry for key, entry in _running(name).items() if below is None or key[0] < below}
    group = re.compile(rf"{re.escape(name)}/(\d+)/\d+")
    with told_as_shard_error(f"ending the actors {name}"):
        for entry in known.values():
            with suppress(ValueError):  # it has ended by itself
                ray.kill(ray.get_actor(entry, namespace=NAMESPACE), no_restart=True)
        for told in ray.util.placement_group_table().values():
            found = group.fullmatch(told["name"])
            if found and told["state"] != "REMOVED" and (below is None or int(found[1]) < below):
                with suppress(ValueError):
                    ray.util.remove_placement_group(ray.util.get_placement_group(told["name"]))
    return len(known)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"name is {shown(name)}; expected up to 60 letters, digits, - and _")


def _place(name: str, number: int, replica: int, path: str) -> str:
    where = f" of {path}" if path else ""
    return f"actor {name}/{number}/{replica}{where}"
