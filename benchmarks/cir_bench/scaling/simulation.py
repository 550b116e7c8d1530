"""Queries over shards that are not here, drawn from what was measured of those that are.

A query takes as long as its slowest shard, which is drawn from measured times of shards, and what
coordination was measured to take; a second replica is asked when a shard takes longer than 95 of 100 did.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_bench.scaling.measuring import Measured
from cir_bench.timing import percentile

__all__ = ["Network", "Node", "checked_against", "plan", "simulated"]

Milliseconds = npt.NDArray[np.float64]
_DRAWS, _LEAST_DRAWS, _MOST_TIMES = 20_000, 200, 500_000
"""Queries that are drawn: many, but of shards together no more times than are quick to draw."""
_FILLED = 0.8
"""Of a node's memory; the rest is the system's, the catalogue's and the caches'."""
_BYTES = {"float16": lambda dimension: 2 * dimension, "int8": lambda dimension: dimension + 4}


class Node(NamedTuple):
    """A machine that holds a shard.

    Attributes:
        name: for people.
        rate: GB of rows it scans a second, as measured.
        memory: GB.
        price: an hour, 0 where nobody said.
    """

    name: str
    rate: float
    memory: float
    price: float = 0.0


class Network(NamedTuple):
    """Between whoever composes a query and a shard, there and back, in ms; log-normal."""

    median: float
    p99: float

    def drawn(self, rng: np.random.Generator, shape: tuple[int, int]) -> Milliseconds:
        """So many times."""
        if self.median <= 0:
            return np.zeros(shape)
        sigma = max(math.log(self.p99 / self.median), 0.0) / 2.326  # the 99th percentile of a normal
        return np.asarray(self.median * np.exp(sigma * rng.standard_normal(shape)))


def simulated(
    own: Milliseconds, coordination: Milliseconds, shards: int, replicas: int, network: Network, seed: int = 0
) -> Milliseconds:
    """How long queries take, ms.

    Args:
        own: times of one shard.
        coordination: times beyond the slowest.
        shards: how many there are.
        replicas: of each; the second is asked at the 95th percentile.
        network: to each.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    draws = max(_LEAST_DRAWS, min(_DRAWS, _MOST_TIMES // shards))
    shape = (draws, shards)

    def drawn() -> Milliseconds:
        return np.asarray(rng.choice(own.reshape(-1), shape) + network.drawn(rng, shape))

    took = drawn()
    if replicas > 1:
        usual = np.percentile(took, 95)
        took = np.where(took > usual, np.minimum(took, usual + drawn()), took)
    slowest: Milliseconds = took.max(axis=1) + rng.choice(coordination, draws)
    return slowest


def checked_against(measured: Measured) -> dict[str, Any]:
    """The simulation of what was measured, beside it: percentiles and their ratios."""
    drawn = simulated(measured.own, measured.coordination, measured.shards, 1, Network(0, 0))
    return {
        "shards": measured.shards,
        **{
            f"p{q}": {
                "measured_ms": percentile(measured.total, q),
                "simulated_ms": percentile(drawn, q),
                "ratio": percentile(drawn, q) / percentile(measured.total, q),
            }
            for q in (50, 95, 99)
        },
    }


def plan(
    rows: int, dtype: str, dimension: int, node: Node, seconds: float, measured: Measured, network: Network
) -> dict[str, Any]:
    """How many nodes hold so many rows and scan them in time, and what queries then take.

    Args:
        rows: items.
        dtype: "float16" or "int8", whose scans are taken to run at one rate of bytes.
        dimension: D.
        node: the machine.
        seconds: a scan may take.
        measured: its times of shards, relative to their median, are those of every shard.
        network: between the nodes.
    """
    gigabytes = rows * _BYTES[dtype](dimension) / 1e9
    count = max(math.ceil(gigabytes / (_FILLED * node.memory)), math.ceil(gigabytes / node.rate / seconds), 1)
    scan = 1000 * gigabytes / count / node.rate
    own = scan * measured.own.reshape(-1) / np.median(measured.own)
    told: dict[str, Any] = {
        "rows": rows,
        "dtype": dtype,
        "node": node.name,
        "gigabytes": gigabytes,
        "nodes": count,
        "scan_ms": scan,
    }
    for replicas in (1, 2):
        drawn = simulated(own, measured.coordination, count, replicas, network)
        told[f"replicas_{replicas}"] = {
            "nodes": replicas * count,
            **{f"p{q}_ms": percentile(drawn, q) for q in (50, 99)},
            **({"price_an_hour": replicas * count * node.price} if node.price else {}),
        }
    return told
