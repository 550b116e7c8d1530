"""Hostile inputs give a `CirError` or an answer: nothing else, no crash, no hang, no memory explosion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzzing.shares import SHARES

REPOSITORY = Path(__file__).parent.parent.parent
PER_SHARE = 8
"""Inputs in the suite for each share of a target; `make stress` feeds a hundred times as many and more."""


def fuzz(target: str, count: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fuzzing.run", target, "--inputs", str(count), "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    print(json.dumps(report))
    assert report["findings"] == []
    assert report["inputs"] == sum(report["outcomes"].values()) == count
    assert report["grown_mib"] <= 512
    return report


@pytest.mark.parametrize("target", SHARES)
def test_a_few_hostile_inputs(target: str) -> None:
    report = fuzz(target, PER_SHARE * SHARES[target], seed=0)
    # Variations that are all refused (or all accepted) would test one line of code.
    assert len(report["outcomes"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARES)
def test_two_hundred_thousand_hostile_inputs(target: str) -> None:
    fuzz(target, 1000 * SHARES[target], seed=1)


def test_every_target_has_its_share() -> None:
    from tests.fuzzing.targets import TARGETS

    assert set(TARGETS) == set(SHARES)
