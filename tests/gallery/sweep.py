"""Let each file operation of something fail in each way, and look at what it left behind."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KILL, TORN, ONCE, STICKY = 1, 2, 3, 4
ACTIONS = {
    "kill": (KILL, 0),
    "torn write": (TORN, 0),
    "EIO once": (ONCE, 5),
    "ENOSPC once": (ONCE, 28),
    "EIO from then on": (STICKY, 5),
    "ENOSPC from then on": (STICKY, 28),
}
ACKNOWLEDGED, REFUSED, BROKEN, UNKNOWN = 0, 10, 11, 12
_ENDS = {-signal.SIGKILL: "killed", REFUSED: "refused", UNKNOWN: "unknown"}


def let_each_fail(
    names: Iterable[str],
    actions: list[str],
    stride: int,
    attempt: Callable[[str, tuple[int, int, int]], tuple[int, bytes]],
    problem_of: Callable[[str, str, str], str | None],
) -> dict[str, Any]:
    """Let each file operation of what is named fail in each way.

    Args:
        names: what is done.
        actions: of `ACTIONS`.
        stride: of so many operations, one.
        attempt: does what is named from its start, in a child, under a fault: operation (0: none), action,
            error. How the child ended, and "acknowledged" with the number of operations.
        problem_of: of a name, an action and an outcome what is wrong with what it left, or None.
    """
    totals: Counter[str] = Counter()
    points: dict[str, int] = {}
    violations: list[str] = []
    for name in names:
        points[name] = int(attempt(name, (0, 0, 0))[1].split()[1])
        for action, at in itertools.product(actions, range(1, points[name] + 1, stride)):
            code, said = attempt(name, (at, *ACTIONS[action]))
            outcome = "acknowledged" if said else _ENDS.get(code, "broken")
            problem = f"exit code {code}" if outcome == "broken" else problem_of(name, action, outcome)
            if problem:
                violations.append(f"{name}, {action} at {at} of {points[name]} ({outcome}): {problem}")
            totals[f"{action}: {outcome}"] += 1
    return {
        "runs": sum(totals.values()),
        "points": points,
        "outcomes": dict(totals),
        "violations": violations,
    }


def replaced_by(place: Path, start: Path) -> None:
    """A fresh copy of a folder in the place of what is there."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(start, place)
