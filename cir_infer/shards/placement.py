"""Where the replicas of a shard run: on different machines of a Ray cluster."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from cir_infer.errors import ShardError
from cir_infer.shards.ray_cluster import PATIENCE, machines_of

__all__ = ["Placement"]

_log = logging.getLogger(__name__)

_ROOM = 10.0
"""Seconds in which as many machines as replicas must have room for one each."""


class Placement(NamedTuple):
    """Where the replicas of a shard go.

    Attributes:
        group: Ray's placement group; None where one replica goes anywhere.
    """

    group: Any

    @classmethod
    def of(cls, ray: Any, name: str, replicas: int, processors: float, owned: bool) -> Placement:
        """On different machines, where there are as many; else spread over those that are there.

        Raises:
            ShardError: there is no room for them.
        """
        if replicas == 1:
            return cls(None)
        machines = machines_of(ray)
        # A bundle must ask for something; a byte is everywhere.
        bundle = {"CPU": processors} if processors else {"memory": 1}
        for strategy in ("STRICT_SPREAD", "SPREAD"):
            if strategy == "STRICT_SPREAD" and machines < replicas:
                continue
            group = ray.util.placement_group(
                [dict(bundle) for _ in range(replicas)],
                strategy=strategy,
                name=name,
                lifetime=None if owned else "detached",
            )
            if group.wait(_ROOM if strategy == "STRICT_SPREAD" else PATIENCE):
                if strategy == "SPREAD":
                    _log.warning(
                        "the %d replicas of %s share machines: %d of the cluster have room for one",
                        replicas, name, machines,
                    )  # fmt: skip
                return cls(group)
            ray.util.remove_placement_group(group)
        raise ShardError(
            f"the cluster has no room for {replicas} replicas with {processors:g} processors each; ask for "
            "fewer"
        )

    def strategy(self, replica: int) -> Any:
        """The scheduling strategy of a replica."""
        if self.group is None:
            return "SPREAD"
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=replica)
