"""Everything at once, see soak.py: `python -m tests.gallery.soak --minutes 30` runs it for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def soak(minutes: float, threads: int) -> dict[str, Any]:
    # A process of its own: it forks, and its memory and descriptors are looked at.
    command = [
        sys.executable,
        "-m",
        "tests.gallery.soak",
        "--minutes",
        str(minutes),
        "--threads",
        str(threads),
    ]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    print(json.dumps(report))
    return report


def test_everything_at_once_for_a_moment() -> None:
    report = soak(0.1, 4)
    assert report["violations"] == [] and report["counts"]["queries"] > 20


@pytest.mark.slow
def test_everything_at_once_keeps_memory_and_descriptors_flat() -> None:
    report = soak(5, 32)
    kinds = {"store", "remove", "compact", "exchanges", "children that committed", "other processes"}
    assert kinds <= report["counts"].keys()
    early, late = report["anonymous_mib"]
    assert late < 1.15 * early
    early, late, most = report["descriptors"]
    assert late < early + 40 and most < 600
