"""`cir-bench scale`: what is measured is checked, and the simulation does what its formula says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cir_bench.commands import main
from cir_bench.scaling.measuring import Measured
from cir_bench.scaling.simulation import Network, Node, plan, simulated


def test_the_slowest_of_several_and_its_second_replica() -> None:
    own = np.arange(1.0, 101.0)
    none, nothing = Network(0, 0), np.zeros(1)
    alone = simulated(own, nothing, 1, 1, none)
    assert set(alone) <= set(own) and np.median(alone) == pytest.approx(50, abs=2)
    eight = simulated(own, nothing, 8, 1, none)
    assert np.median(eight) == pytest.approx(100 * 0.5 ** (1 / 8), abs=1)  # of the largest of eight
    slow = np.where(own > 99, 10_000.0, own)  # one answer of a hundred hangs
    assert np.percentile(simulated(slow, nothing, 8, 1, none), 99) == 10_000
    assert np.percentile(simulated(slow, nothing, 8, 2, none), 99) < 300
    assert np.median(simulated(own, np.full(3, 7.0), 1, 1, none)) == np.median(alone) + 7
    drawn = Network(2.0, 8.0).drawn(np.random.default_rng(0), (100_000, 1))
    assert (np.median(drawn), np.percentile(drawn, 99)) == pytest.approx((2, 8), rel=0.05)


def test_a_plan_fits_memory_and_time() -> None:
    measured = Measured(2, np.full(9, 1.0), np.full((9, 2), 1.0))
    small, slow = Node("small", 1000, 10), Node("slow", 1, 1e6, 2.0)
    asked = (1_000_000, "float16", 500)  # 1 GB
    assert plan(*asked, small, 0.1, measured, Network(0, 0))["nodes"] == 1
    assert plan(16_000_000, *asked[1:], small, 0.1, measured, Network(0, 0))["nodes"] == 2
    told = plan(*asked, slow, 0.1, measured, Network(0, 0))
    assert told["nodes"] == 10 and told["scan_ms"] == pytest.approx(100)
    assert told["replicas_1"]["p99_ms"] == pytest.approx(100)
    assert told["replicas_2"]["price_an_hour"] == 40
    assert plan(1_000_000, "int8", 496, slow, 0.1, measured, Network(0, 0))["gigabytes"] == 0.5


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["scale", "--rows", "300", "--dim", "16", "--queries", "9", "--shards", "2", "3"]
    asked += ["--scan", "1000", "--node", "x:300:512:4.5"]
    assert main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["equal_answers"] == 18 and [part["shards"] for part in said["shards"]] == [2, 3]
    for part in said["shards"]:
        assert part["total"]["samples"] == 9 and part["coordination"]["p50_ms"] > 0
    assert len(said["plans"]) == 12 and said["plans"][1]["replicas_1"]["price_an_hour"] > 0
    assert main(asked) == 0 and "two replicas" in capsys.readouterr().out
    for wrong in (["--node", "x"], ["--node", "x:0:1"], ["--network", "2", "1"], ["--shards", "301"]):
        assert main([*asked, *wrong]) == 2
