"""Shards as actors of Ray: started again when they die, on as many machines as a Ray cluster has.

Needs the extra `[ray]`, of which Ray's core alone is used. Nothing else imports this module.

    shards = RayShards.create("shop", "shop.shards", replicas=2)
    searcher = ShardedSearcher("artemis.cir", shards.groups, deadline=0.5)

Actors are named and outlive the program that started them, so any number of programs can ask them
(`RayShards.attach`). Retries are the searcher's (`cir_infer.shards.fanout`), and none are Ray's.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cir_infer.errors import CirError, ShardError, UsageError, shown
from cir_infer.extras import require
from cir_infer.gallery.arguments import checked_path
from cir_infer.gallery.filters.filters import Where
from cir_infer.inputs.arguments import checked_count
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import Found, Held, References
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.shard import About, LocalShard
from cir_infer.shards.wire import read_held, told_held

__all__ = ["RayShard", "RayShards", "connect"]

T = TypeVar("T")

NAMESPACE = "cir-infer"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")
_AT_ONCE = 8
"""Calls that an actor computes side by side."""
_PATIENCE = 60.0
"""Seconds for a call without a deadline, and for an actor to start."""


def connect(address: str | None = None) -> Any:
    """Join a Ray cluster, or start one of this machine; nothing where this process is in one already.

    What Ray would do by itself is decided here: no usage statistics are sent, unless
    `RAY_USAGE_STATS_ENABLED` says so; no dashboard is started. `RAY_AUTH_MODE=token`, set before, makes Ray
    ask for a token, which it keeps in the user's home; without it, whoever can reach Ray's ports can run
    code, so they belong behind a firewall.

    Args:
        address: of a cluster, e.g. "auto" or "10.0.0.7:6379"; None or "local" for one of this process's own.

    Returns:
        The module `ray`.

    Raises:
        DeviceError: Ray is not installed.
        ShardError: there is no such cluster.
    """
    require("shards on Ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    if not ray.is_initialized():
        address = address or "local"
        chosen: dict[str, Any] = {"address": address}
        if address == "local":
            chosen["include_dashboard"] = False
        try:
            ray.init(
                **chosen,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                ignore_reinit_error=True,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ShardError(
                f"Ray's cluster {shown(address)} cannot be joined ({shown(error, 300)}); start one with "
                "`ray start --head`, or say where it is"
            ) from error
    return ray


class _Actor:
    """What runs in an actor: a gallery, opened once more whenever Ray starts it again."""

    def __init__(self, path: str, scorer: str, threads: int | None) -> None:
        self._shard = LocalShard(path, scorer, threads)

    def about(self) -> tuple[About, int]:
        return self._shard.about(), os.getpid()

    def search(self, *asked: Any) -> Found:
        return self._shard.search(*asked)

    def held(self, item: str) -> str:
        return json.dumps(told_held(self._shard.held(item)))

    def verify(self) -> list[str]:
        from cir_infer.gallery import Gallery

        with Gallery.open(self._shard.place, read_only=True) as gallery:
            return [str(problem) for problem in gallery.verify().problems]


class RayShard:
    """A shard that is an actor. Threads may share one.

    Args:
        actor: its handle.
        place: where it is, for people.
    """

    def __init__(self, actor: Any, place: str) -> None:
        self._actor, self._place = actor, place

    @property
    def place(self) -> str:
        """See `Shard.place`."""
        return self._place

    def about(self, timeout: float | None = None) -> About:
        """See `Shard.about`."""
        about: About = self._call(self._actor.about, timeout)[0]
        return about._replace(place=self._place)

    def search(
        self,
        terms: QueryTerms,
        k: int,
        where: Where | None,
        exclude: Sequence[str],
        references: References = (),
        timeout: float | None = None,
    ) -> Found:
        """See `Shard.search`."""
        found: Found = self._call(self._actor.search, timeout, terms, k, where, exclude, references)
        return found

    def held(self, item: str, timeout: float | None = None) -> Held | None:
        """See `Shard.held`."""
        return read_held(self._call(self._actor.held, timeout, item).encode())

    def pid(self, timeout: float | None = None) -> int:
        """The process that it is in now.

        Raises:
            ShardError: it does not answer.
        """
        return int(self._call(self._actor.about, timeout)[1])

    def verify(self, timeout: float | None = None) -> list[str]:
        """What is wrong with its gallery's files, see `Gallery.verify`.

        Raises:
            CirError: it cannot say.
        """
        problems: list[str] = self._call(self._actor.verify, timeout)
        return problems

    def close(self) -> None:
        """Nothing: the actor goes on for others."""

    def _call(self, method: Any, timeout: float | None, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        reference = None
        try:
            reference = method.remote(*arguments)
            return ray.get(reference, timeout=_PATIENCE if timeout is None else timeout)
        except GetTimeoutError as error:
            ray.cancel(reference, force=False)  # if it has not begun, it never will
            raise ShardError(f"{self._place} did not answer in time") from error
        except RayTaskError as error:
            if isinstance(error.cause, CirError):
                raise error.cause from error
            raise ShardError(f"{self._place} failed: {shown(error.cause, 300)}") from error
        except RayError as error:
            said = str(error).split("\n")[0]
            raise ShardError(
                f"{self._place} cannot be reached ({type(error).__name__}: {shown(said)})"
            ) from error


class RayShards:
    """The actors of a sharded gallery, under a name.

    Attributes:
        name: of all of them.
        groups: for `ShardedSearcher`: the replicas of each shard.
    """

    def __init__(self, name: str, groups: Sequence[Sequence[RayShard]], handles: Sequence[Any]) -> None:
        self.name, self.groups = name, [list(group) for group in groups]
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

        Ray spreads them over its machines. Each opens its gallery by its path, so the folder has to be
        there on every machine: on a shared file system, or as backups at the same place (`Gallery.backup`).

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
        with ShardedGallery(checked_path("path", path), read_only=True) as gallery:
            places = [str(Path(shard.path).absolute()) for shard in gallery.shards]
        ray = connect(address)
        if _running(name):
            raise UsageError(f"there are actors {shown(name)} already; stop them, or choose another name")
        kind = ray.remote(_Actor)
        handles: list[Any] = []
        groups: list[list[RayShard]] = []
        try:
            for number, place in enumerate(places):
                groups.append([])
                for replica in range(count):
                    handle = kind.options(
                        name=_actor_name(name, number, replica, len(places), count),
                        namespace=NAMESPACE,
                        lifetime=None if owned else "detached",
                        max_restarts=-1,
                        max_task_retries=0,
                        max_concurrency=_AT_ONCE,
                        num_cpus=processors,
                        scheduling_strategy="SPREAD",
                    ).remote(place, scorer, threads)
                    handles.append(handle)
                    groups[-1].append(RayShard(handle, _place(name, number, replica, place)))
            for group in groups:
                for shard in group:
                    shard.about(_PATIENCE)
        except BaseException:
            _kill(ray, handles)
            raise
        return cls(name, groups, handles)

    @classmethod
    def attach(cls, name: str, *, address: str | None = "auto") -> RayShards:
        """Find the actors that somebody has started.

        Args:
            name: that they were given.
            address: see `connect`.

        Raises:
            ShardError: there are none, or not all.
        """
        _check_name(name)
        ray = connect(address)
        known = _running(name)
        counts = {key[2:] for key in known}
        if len(counts) != 1 or len(known) != (size := next(iter(counts)))[0] * size[1]:
            raise ShardError(
                f"of the actors {shown(name)} {len(known)} run; start them with "
                f"`cir-cluster create {name} FOLDER`"
            )
        handles = {key: ray.get_actor(entry, namespace=NAMESPACE) for key, entry in sorted(known.items())}
        shards, replicas = size
        groups = [
            [RayShard(handles[n, r, shards, replicas], _place(name, n, r, "")) for r in range(replicas)]
            for n in range(shards)
        ]
        return cls(name, groups, list(handles.values()))

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

        _kill(ray, self._handles)

    def __enter__(self) -> RayShards:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.stop()


def _running(name: str) -> dict[tuple[int, ...], str]:
    """The names of actors by shard, replica and how many there are of both."""
    from ray.util import list_named_actors

    pattern = re.compile(rf"{re.escape(name)}/(\d+)/(\d+)/(\d+)/(\d+)")
    return {
        tuple(map(int, found.groups())): entry["name"]
        for entry in list_named_actors(all_namespaces=True)
        if entry["namespace"] == NAMESPACE and (found := pattern.fullmatch(entry["name"]))
    }


def _kill(ray: Any, handles: Sequence[Any]) -> None:
    for handle in handles:
        ray.kill(handle, no_restart=True)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"name is {shown(name)}; expected up to 60 letters, digits, - and _")


def _actor_name(name: str, number: int, replica: int, shards: int, replicas: int) -> str:
    return f"{name}/{number}/{replica}/{shards}/{replicas}"


def _place(name: str, number: int, replica: int, path: str) -> str:
    where = f" of {path}" if path else ""
    return f"actor {name}/{number}/{replica}{where}"
