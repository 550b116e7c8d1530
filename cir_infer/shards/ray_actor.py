"""A shard as an actor of Ray. Needs the extra `[ray]`."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.errors import CirError, ShardError, UsageError, shown
from cir_infer.gallery.filters.filters import Where
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.found import NO_REFERENCES, Found, Held, References
from cir_infer.shards.ray_cluster import PATIENCE, cause_of, membership, told_as_shard_error
from cir_infer.shards.shard import About, LocalShard
from cir_infer.shards.wire import held_in_parts, read_held, told_held

__all__ = ["Actor", "Actors", "HandleShard", "RayShard", "check_folder"]

_LOOK = 1.0
"""Seconds after which a call that waits sees that its cluster was left."""


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


def check_folder(name: str, asked: str, folder: str | Path) -> None:
    """Make sure that what goes by a name asks the shards of a folder.

    Args:
        name: of actors, or of a service.
        asked: the folder whose shards it asks.
        folder: the one that is meant.

    Raises:
        UsageError: it is another.
    """
    if os.path.realpath(asked) != os.path.realpath(folder):
        raise UsageError(
            f"{shown(name)} asks the shards of {shown(asked)}, and those of {shown(str(folder))} were named; "
            "name its folder, or what asks this one"
        )


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

    def held(self, items: Sequence[str]) -> str:
        """See `Shard.held`; as JSON, because what it holds cannot be pickled."""
        return json.dumps(told_held(self._shard.held(items)))

    def verify(self) -> list[str]:
        """What is wrong with the gallery's files."""
        from cir_infer.gallery import Gallery

        with Gallery.open(self._shard.place, read_only=True) as gallery:
            return [str(problem) for problem in gallery.verify().problems]


class HandleShard(ABC):
    """A shard that is asked through a handle of Ray to an `Actor`. Threads may share one.

    Args:
        handle: of an actor, or of a deployment of Ray Serve.
        place: where it is, for people.
    """

    def __init__(self, handle: Any, place: str) -> None:
        self._handle, self._place = handle, place

    @abstractmethod
    def _call(self, method: str, timeout: float | None, *arguments: Any) -> Any:
        """What a method of the `Actor` returns, within a number of seconds.

        Raises:
            CirError: that the method raised.
            ShardError: it cannot be reached, or not in time.
        """

    def _told(self, error: Exception) -> CirError:
        """What an error says that came out of Ray: what the method raised, or that it cannot be reached."""
        if (cause := cause_of(error, self._place)) is not None:
            return cause
        if isinstance(error, CirError):
            return error
        said = str(error).strip().split("\n")[0]
        return ShardError(f"{self._place} cannot be reached ({type(error).__name__}: {shown(said)})")

    @property
    def place(self) -> str:
        """See `Shard.place`."""
        return self._place

    def about(self, timeout: float | None = None) -> About:
        """See `Shard.about`."""
        about: About = self._call("about", timeout)[0]
        return about._replace(place=self._place)

    def search(
        self,
        terms: QueryTerms,
        k: int,
        where: Where | None,
        exclude: Sequence[str],
        references: References = NO_REFERENCES,
        timeout: float | None = None,
    ) -> Found:
        """See `Shard.search`."""
        found: Found = self._call("search", timeout, terms, k, where, exclude, references)
        return found

    def held(self, items: Sequence[str], timeout: float | None = None) -> list[Held | None]:
        """See `Shard.held`."""
        return held_in_parts(items, self._first_held, timeout)

    def _first_held(self, items: list[str], timeout: float | None) -> list[Held | None]:
        return read_held(self._call("held", timeout, items).encode(), len(items))

    def close(self) -> None:
        """Nothing: what it asks goes on for others."""
        return


class RayShard(HandleShard):
    """A shard that is an actor."""

    def pid(self, timeout: float | None = None) -> int:
        """The process that it is in now.

        Raises:
            ShardError: it does not answer.
        """
        return int(self._call("about", timeout)[1])

    def machine(self, timeout: float | None = None) -> str:
        """Ray's name of the machine that it is on now.

        Raises:
            ShardError: it does not answer.
        """
        return str(self._call("about", timeout)[2])

    def started_as(self, timeout: float | None = None) -> Actors:
        """How it was started.

        Raises:
            ShardError: it does not answer.
        """
        actors: Actors = self._call("started_as", timeout)
        return actors

    def restart(self) -> None:
        """End its process, which Ray starts again; what it is asked meanwhile goes to another replica."""
        import ray

        with told_as_shard_error(f"restarting {self._place}"):
            ray.kill(self._handle, no_restart=False)

    def verify(self, timeout: float | None = None) -> list[str]:
        """What is wrong with its gallery's files, see `Gallery.verify`.

        Raises:
            CirError: it cannot say.
        """
        problems: list[str] = self._call("verify", timeout)
        return problems

    def _call(self, method: str, timeout: float | None, *arguments: Any) -> Any:
        import ray

        member = membership()
        until = time.monotonic() + (PATIENCE if timeout is None else timeout)
        try:
            with nullcontext() if member is None else member.call():
                reference = getattr(self._handle, method).remote(*arguments)
                while not ray.wait([reference], timeout=min(max(until - time.monotonic(), 0.0), _LOOK))[0]:
                    if member is not None:
                        member.check_left()
                    if time.monotonic() >= until:
                        ray.cancel(reference, force=False)  # if it has not begun, it never will
                        raise ShardError(f"{self._place} did not answer in time")
                return ray.get(reference)
        except Exception as error:  # Ray has many, and others where its cluster is gone
            raise self._told(error) from error.__cause__
