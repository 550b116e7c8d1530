"""A shard as an actor of Ray, and how a cluster is joined. Needs the extra `[ray]`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from cir_infer.errors import CirError, ShardError, shown
from cir_infer.extras import require
from cir_infer.gallery.filters.filters import Where
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import Found, Held, References
from cir_infer.shards.shard import About, LocalShard
from cir_infer.shards.wire import read_held, told_held

__all__ = ["NAMESPACE", "PATIENCE", "Actor", "Actors", "RayShard", "connect"]

NAMESPACE = "cir-infer"
PATIENCE = 60.0
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
        except Exception as error:  # a start that takes too long is one without a name
            raise ShardError(
                f"Ray's cluster {shown(address)} cannot be joined ({shown(error, 300)}); start one with "
                "`ray start --head`, or say where it is"
            ) from error
    return ray


class Actors(NamedTuple):
    """How the actors of a sharded gallery are started.

    Attributes:
        folder: of the sharded gallery.
        replicas: of each shard.
        scorer: see `cir_infer.scoring.make_scorer`.
        threads: CPU threads of a call; None for every core.
        processors: that Ray keeps for an actor; 0 for a share of what is there.
        bundle: that the folder named when they were started, None where it named none.
    """

    folder: str
    replicas: int = 1
    scorer: str = "cpu"
    threads: int | None = 1
    processors: float = 0
    bundle: str | None = None


class Actor:
    """What runs in an actor: a gallery, opened once more whenever Ray starts it again."""

    def __init__(self, path: str, actors: Actors) -> None:
        self._actors = actors
        self._shard = LocalShard(path, actors.scorer, actors.threads)

    def about(self) -> tuple[About, int, str]:
        """What it is, its process, and Ray's name of its machine."""
        import ray

        return self._shard.about(), os.getpid(), ray.get_runtime_context().get_node_id()

    def started_as(self) -> Actors:
        """How it was started."""
        return self._actors

    def search(self, *asked: Any) -> Found:
        """See `Shard.search`."""
        return self._shard.search(*asked)

    def held(self, item: str) -> str:
        """See `Shard.held`; as JSON, because what it holds cannot be pickled."""
        return json.dumps(told_held(self._shard.held(item)))

    def verify(self) -> list[str]:
        """What is wrong with the gallery's files."""
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

    def machine(self, timeout: float | None = None) -> str:
        """Ray's name of the machine that it is on now.

        Raises:
            ShardError: it does not answer.
        """
        return str(self._call(self._actor.about, timeout)[2])

    def started_as(self, timeout: float | None = None) -> Actors:
        """How it was started.

        Raises:
            ShardError: it does not answer.
        """
        actors: Actors = self._call(self._actor.started_as, timeout)
        return actors

    def restart(self) -> None:
        """End its process, which Ray starts again; what it is asked meanwhile goes to another replica."""
        import ray

        ray.kill(self._actor, no_restart=False)

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
            return ray.get(reference, timeout=PATIENCE if timeout is None else timeout)
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
