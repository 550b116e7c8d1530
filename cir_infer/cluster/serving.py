"""A sharded gallery behind HTTP on Ray Serve: the routes of `cir-serve`, one deployment a shard.

Two kinds of applications make up a service NAME. `NAME` is asked by people: its replicas are `cir-serve`'s
application with an engine each, which compute what waits together. `NAME-shards-TAG` holds the shards of one
version of the gallery, a deployment each. When others take their place, theirs is started beside it, the
replicas of `NAME` open it beside the old one and go over, and the old one ends. A query is of one version.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.errors import CirError, ShardError, UsageError, shown
from cir_infer.extras import modules_of, require
from cir_infer.inputs.arguments import checked_seconds
from cir_infer.processes.threads import Threads
from cir_infer.serving.settings import Settings
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.listing import Listing, read_listing
from cir_infer.shards.ray_actor import Actor, Actors, HandleShard, check_folder
from cir_infer.shards.ray_cluster import (
    PATIENCE,
    connect,
    machines_of,
    told_as_shard_error,
)

__all__ = ["Replicas", "ServeShard", "check_served", "deploy", "remove", "renew", "shards_of", "tag_of"]

_AT_ONCE, _WAITING = 8, 64
"""Calls that a shard's replica computes side by side, and that wait for it before more are refused."""
_LOOK = 1.0
_TAG = 12
"""Letters of a `tag_of`."""


class Replicas(NamedTuple):
    """How many there are of something; Ray Serve chooses between them by how much there is to do.

    Attributes:
        least: always.
        most: at most.
        gpus: that Ray keeps for each.
    """

    least: int = 1
    most: int = 1
    gpus: float = 0

    def options(self, ongoing: int) -> dict[str, Any]:
        """As Ray Serve takes it.

        Args:
            ongoing: requests in work that one shall have.
        """
        gpus = {"ray_actor_options": {"num_cpus": 0, "num_gpus": self.gpus}}
        if self.least == self.most:
            return {"num_replicas": self.least, **gpus}
        bounds = {"min_replicas": self.least, "max_replicas": self.most, "target_ongoing_requests": ongoing}
        return {"autoscaling_config": bounds, **gpus}


def tag_of(listing: Listing) -> str:
    """A name for one version of a sharded gallery."""
    told = "\n".join([str(listing.fingerprint), *listing.shards])
    return hashlib.sha256(told.encode()).hexdigest()[:_TAG]


class ServeShard(HandleShard):
    """A shard that is a deployment of Ray Serve."""

    def _call(self, method: str, timeout: float | None, *arguments: Any) -> Any:
        response = None
        try:
            response = getattr(self._handle, method).remote(*arguments)
            return response.result(timeout_s=PATIENCE if timeout is None else timeout)
        except TimeoutError as error:
            if response is not None:
                response.cancel()
            raise ShardError(f"{self._place} did not answer in time") from error
        except Exception as error:  # Ray Serve has many, and what it calls may raise any
            raise self._told(error) from error.__cause__


class _Door:
    """Binds the deployments of an application of shards together, and knows how they were started."""

    def __init__(self, shards: Replicas, threads: int | None, folder: str, *deployments: Any) -> None:
        self._started = shards, threads, folder
        self._deployments = deployments

    def started_as(self) -> tuple[Replicas, int | None, str]:
        """How they were started, and of which folder."""
        return self._started


def _application(name: str, listing: Listing) -> str:
    return f"{name}-shards-{tag_of(listing)}"


def _parts(name: str) -> Callable[[Listing], list[list[ServeShard]]]:
    """The shards of a listing as `open_searcher` takes them; twice, so that a slow one is asked again."""

    def found(listing: Listing) -> list[list[ServeShard]]:
        from ray import serve

        application = _application(name, listing)
        groups = []
        for number in range(len(listing.shards)):
            handle = serve.get_deployment_handle(f"shard-{number}", app_name=application)
            shard = ServeShard(handle, f"deployment shard-{number} of {application}")
            groups.append([shard, shard])
        return groups

    return found


def _follow(service: Any, settings: Settings) -> None:
    """Let a service go over whenever its gallery has other shards that are deployed."""
    with service.current.use() as opened:  # by now the folder may say something else
        known = tag_of(opened.gallery.listing)
    while service.ready:
        time.sleep(_LOOK)
        try:
            newest = tag_of(read_listing(settings.gallery_path))
        except CirError:
            continue  # looked at again
        if newest != known and service.reload():
            known = newest


def _queries(name: str, settings: Settings) -> Any:
    """What a replica of `NAME` runs, made where it runs."""

    def built() -> Any:
        from cir_infer.serving.app import make_app
        from cir_infer.serving.service import Service

        # Not in the thread of the event loop, in which nothing of Ray Serve may be waited for.
        threads = Threads(1)
        service = threads.submit(Service, settings, _parts(name)).result()
        threads.close()
        threading.Thread(target=_follow, args=(service, settings), daemon=True).start()
        return make_app(service)

    return built


def _shards(
    ray: Any, name: str, listing: Listing, folder: Path, shards: Replicas, threads: int | None
) -> None:
    """Start the shards of a listing, and wait until they run."""
    from ray import serve

    actors = Actors(str(folder), shards.least, "cpu", threads, 0, listing.bundle)
    machines = machines_of(ray)
    options = shards.options(_AT_ONCE // 2)
    if 1 < shards.most <= machines:
        options["max_replicas_per_node"] = 1  # no machine that dies takes a whole shard
    kind = serve.deployment(Actor, max_ongoing_requests=_AT_ONCE, max_queued_requests=_WAITING, **options)
    bound = [
        kind.options(name=f"shard-{number}").bind(str(folder / place), actors)
        for number, place in enumerate(listing.shards)
    ]
    door = serve.deployment(_Door, name="door", ray_actor_options={"num_cpus": 0})
    serve.run(
        door.bind(shards, threads, str(folder), *bound), name=_application(name, listing), route_prefix=None
    )


def deploy(
    name: str,
    settings: Settings,
    *,
    queries: Replicas = Replicas(),
    shards: Replicas = Replicas(),
    address: str | None = "auto",
) -> None:
    """Serve a sharded gallery on a cluster, and wait until it answers.

    The folder and the bundle have to be at their paths on every machine. The service outlives this program.

    Args:
        name: of the service: letters, digits, - and _.
        settings: as for `cir-serve`: what is asked and refused is the same. `bundle` may be empty where the
            folder names one; `host` and `port` are those of Ray Serve's proxies, one a machine.
        queries: engines with the routes in front.
        shards: of each shard.
        address: see `connect`.

    Raises:
        CirError: bundle or gallery cannot be opened, or Ray Serve does not start them.
    """
    require("cir-cluster serve", *modules_of("ray-serve"), *modules_of("serve"))
    settings = settings.absolute()  # replicas run in another folder
    folder = settings.gallery_path
    with ShardedGallery(folder, read_only=True) as gallery:
        listing = gallery.listing
    if not settings.bundle and listing.bundle is None:
        raise UsageError(f"{folder}: does not say which bundle made its rows; name it with --bundle")
    ray = connect(address)
    from ray import serve

    with told_as_shard_error(f"serving {shown(name)}"):
        serve.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": settings.port})
        _shards(ray, name, listing, folder, shards, settings.threads)
        ingress = serve.ingress(_queries(name, settings))()
        kind = serve.deployment(
            ingress,
            name="queries",
            max_ongoing_requests=settings.concurrency,
            **queries.options(settings.max_batch),
        )
        serve.run(kind.bind(), name=name, route_prefix="/")


def renew(name: str, folder: str | Path, *, grace: float = 10.0, address: str | None = "auto") -> list[str]:
    """Let a service go over to the shards that its folder has now, then end those of before.

    Args:
        name: of the service.
        folder: the sharded gallery.
        grace: seconds for the replicas of queries to go over, and for what they have begun.
        address: see `connect`.

    Returns:
        The applications that were ended.

    Raises:
        CirError: see `deploy`; what was served is served on.
    """
    grace = checked_seconds("grace", grace)
    ray = connect(address)
    from ray import serve

    place = Path(folder).absolute()
    listing = read_listing(place)
    with told_as_shard_error(f"serving {shown(name)}"):
        newest = _application(name, listing)
        running, shards, threads = _served(serve, name, place)
        old = [one for one in running if one != newest]
        _shards(ray, name, listing, place, shards, threads)
        time.sleep(grace)
        for application in old:
            serve.delete(application)
    return old


def remove(name: str, *, address: str | None = "auto") -> list[str]:
    """End a service with its shards; the gallery stays as it is.

    Returns:
        The applications that were ended.

    Raises:
        CirError: there is no cluster.
    """
    connect(address)
    from ray import serve

    with told_as_shard_error(f"serving {shown(name)}"):
        found = [*(one for one in serve.status().applications if one == name), *_running(serve, name)]
        for application in found:
            serve.delete(application)
    return found


def check_served(name: str, folder: str | Path, *, address: str | None = "auto") -> None:
    """Make sure that there is a service that can go over to other shards of a folder.

    Raises:
        CirError: there is no cluster, none of its shards run, or they are another folder's.
    """
    connect(address)
    from ray import serve

    with told_as_shard_error(f"looking for {shown(name)}"):
        _served(serve, name, folder)


def _served(serve: Any, name: str, folder: str | Path) -> tuple[list[str], Replicas, int | None]:
    """The applications that hold a service's shards, and how they were started."""
    running = _running(serve, name)
    if not running:
        raise ShardError(f"no shards of {shown(name)} run; start them with `cir-cluster serve`")
    door = serve.get_deployment_handle("door", app_name=running[0])
    shards, threads, asked = door.started_as.remote().result(timeout_s=PATIENCE)
    check_folder(name, asked, folder)
    return running, shards, threads


def _running(serve: Any, name: str) -> list[str]:
    return shards_of(serve.status().applications, name)


def shards_of(applications: Iterable[str], name: str) -> list[str]:
    """Of the names of applications, those that hold the shards of a service; another's may begin alike."""
    own = re.compile(rf"{re.escape(name)}-shards-[0-9a-f]{{{_TAG}}}")
    return [one for one in applications if own.fullmatch(one)]
