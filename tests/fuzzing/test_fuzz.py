"""Hostile inputs give a `CirError` or an answer: nothing else, no crash, no hang, no memory explosion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
# target: inputs in the suite, inputs in `make stress`
COUNTS = {
    "expressions": (400, 40_000),
    "images": (150, 30_000),
    "bundles": (80, 15_000),
    "tables": (120, 20_000),
    "shards": (60, 15_000),
    "trees": (20, 15_000),
    "galleries": (25, 6_000),
    "imports": (25, 4_000),
    "models": (12, 3_000),
    "arguments": (250, 20_000),
    "queries": (300, 50_000),
    "scorers": (400, 20_000),
}


def fuzz(target: str, count: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fuzzing.run", target, "--count", str(count), "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    print(json.dumps(report))
    assert report["findings"] == []
    assert report["inputs"] == sum(report["outcomes"].values()) == count
    assert report["memory_mib"][1] < 1024
    return report


@pytest.mark.parametrize("target", COUNTS)
def test_a_few_hostile_inputs(target: str) -> None:
    report = fuzz(target, COUNTS[target][0], seed=0)
    # Variations that are all refused (or all accepted) would test one line of code.
    assert len(report["outcomes"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("target", COUNTS)
def test_a_hundred_thousand_hostile_inputs(target: str) -> None:
    fuzz(target, COUNTS[target][1], seed=1)
