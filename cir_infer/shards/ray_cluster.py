"""A Ray cluster, joined: what everything on it shares. Needs the extra `[ray]`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cir_infer.errors import CirError, ShardError, shown
from cir_infer.extras import require
from cir_infer.shards.ray_head import Membership, check_head, head_of

__all__ = [
    "NAMESPACE",
    "PATIENCE",
    "cause_of",
    "connect",
    "joined",
    "machines_of",
    "membership",
    "told_as_shard_error",
]

_membership: Membership | None = None
_joins = 0

NAMESPACE = "cir-infer"
PATIENCE = 60.0
"""Seconds for a call without a deadline, and for an actor to start."""


def connect(address: str | None = None) -> Any:
    """Join a Ray cluster, or start one of this machine; nothing where this process is in one already.

    What Ray would do by itself is decided here: no usage statistics are sent, unless
    `RAY_USAGE_STATS_ENABLED` says so; no dashboard is started; nothing is joined or started by what is asked
    when there is no cluster. `RAY_AUTH_MODE=token`, set before, makes Ray
    ask for a token, which it keeps in the user's home; without it, whoever can reach Ray's ports can run
    code, so they belong behind a firewall.

    A process that joined a cluster here leaves it when the head has been away for half a minute: Ray would
    end it. Until this is called again everything that it asks is a `ShardError`.

    Args:
        address: of a cluster, e.g. "auto" or "10.0.0.7:6379"; None or "local" for one of this process's own.

    Returns:
        The module `ray`.

    Raises:
        DeviceError: Ray is not installed.
        ShardError: there is no such cluster, or its head is not there.
    """
    global _membership
    require("shards on Ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    if ray.is_initialized():
        if _membership is not None:
            _membership.check()
    else:
        address = address or "local"
        if (head := head_of(address)) is not None:
            check_head(head)
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
            if address == "local":
                what = "Ray does not start here"
                remedy = "see its logs in /tmp/ray, or run this again when this machine has less to do"
            else:
                what = f"Ray's cluster {shown(address)} cannot be joined"
                remedy = "start one with `ray start --head`, or say where it is"
            raise ShardError(f"{what} ({shown(error, 300)}); {remedy}") from error
        _membership = _member(ray)
    return ray


def _member(ray: Any) -> Membership | None:
    """This process in the cluster that it has just joined; None for a client, whom Ray does not end."""
    global _joins
    _joins += 1
    if _membership is not None:
        _membership.end()
    if ray.util.client.ray.is_connected():
        return None
    told = str(ray.get_runtime_context().gcs_address)
    place = head_of(told)

    def leave() -> None:
        if ray.is_initialized() and str(ray.get_runtime_context().gcs_address) == told:
            ray.shutdown()

    return None if place is None else Membership(place, leave)


def membership() -> Membership | None:
    """This process in the cluster that `connect` joined, None where somebody else did."""
    return _membership


def joined() -> int:
    """How often this process has joined a cluster by `connect`; handles of one are nothing in the next."""
    return _joins


def machines_of(ray: Any) -> int:
    """How many machines of the cluster are there.

    Args:
        ray: the module.
    """
    return sum(bool(node["Alive"]) for node in ray.nodes())


def cause_of(error: BaseException, asked: str = "a task on Ray") -> CirError | None:
    """What a task or an actor's method raised: a `CirError` as it is. None for deaths and the like.

    Args:
        error: that came out of Ray.
        asked: who failed, where it is no `CirError`.
    """
    from ray.exceptions import RayTaskError

    if not isinstance(error, RayTaskError):
        return None
    if isinstance(error.cause, CirError):
        return error.cause
    return ShardError(f"{asked} failed: {shown(error.cause, 300)}")


@contextmanager
def told_as_shard_error(doing: str) -> Iterator[None]:
    """What Ray raises of its many errors, as one line with a remedy; a `CirError` stays as it is.

    Args:
        doing: what is done meanwhile: "starting actors".

    Raises:
        ShardError: Ray raised something.
    """
    try:
        yield
    except Exception as error:
        # First: what a task raised is of its type, and has all of Ray's traces for a message.
        if (cause := cause_of(error, doing)) is not None:
            raise cause from error
        if isinstance(error, CirError):
            raise
        said = " ".join(str(error).split())
        raise ShardError(
            f"{doing} failed on Ray ({type(error).__name__}: {shown(said, 300)}); `ray status` says whether "
            "the cluster is there: if it is not, start it (`ray start --head`) and run this again; galleries "
            "are on the disk, and nothing of them is lost"
        ) from error
