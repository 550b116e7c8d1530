"""How many processors this process may use. Containers and `taskset` leave fewer than the machine has."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = ["available_cores", "available_cpus"]

_PROC = Path("/proc/self")
_PROCESSORS = Path("/sys/devices/system/cpu")
_UNLIMITED = 1 << 30


def available_cpus() -> int:
    """Processors that the affinity mask and the control groups (v1 or v2) leave to this process, at least 1.

    A quota of 1.5 processors counts as 2: a thread that waits costs less than a processor that idles.
    """
    counts = [_by_affinity()]
    with suppress(OSError, ValueError):
        counts.append(_by_quota(_PROC))
    return max(1, min(counts))


def available_cores(processors: Path = _PROCESSORS) -> int | None:
    """Cores that these processors are of, at least 1: a core may be two of them. None where nobody says.

    Args:
        processors: Linux's account of the machine's.
    """
    try:
        siblings = (processors / f"cpu{number}/topology/thread_siblings_list" for number in _affinity())
        return max(1, min(len({file.read_text() for file in siblings}), available_cpus()))
    except (OSError, AttributeError):
        return None


def _affinity() -> set[int]:
    return os.sched_getaffinity(0)


def _by_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        with suppress(OSError):
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _by_quota(proc: Path) -> int:
    """The smallest quota of the control groups that hold this process, and of those above them."""
    quotas = (_quota(folder) for folder in _groups(proc))
    return min((max(1, math.ceil(quota)) for quota in quotas if quota is not None), default=_UNLIMITED)


def _groups(proc: Path) -> list[Path]:
    """The folders of this process' control groups that may hold a quota, from the innermost to the root."""
    mounts: dict[str, tuple[Path, Path]] = {}  # "v2" or "v1": where it is mounted, and of which group
    for line in (proc / "mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        place = (Path(_unescaped(fields[4])), Path(_unescaped(fields[3])))
        if kind[0] == "cgroup2":
            mounts.setdefault("v2", place)
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            mounts.setdefault("v1", place)
    folders: list[Path] = []
    for line in (proc / "cgroup").read_text("utf-8", "surrogateescape").splitlines():
        number, controllers, group = line.split(":", 2)
        version = (
            "v2" if number == "0" and not controllers else "v1" if "cpu" in controllers.split(",") else ""
        )
        if version not in mounts:
            continue
        mount, root = mounts[version]
        # Inside a container the mount shows a part of the tree, and a group's name may lie outside it.
        below = Path(group).is_relative_to(root) and ".." not in Path(group).parts
        inside = Path(group).relative_to(root) if below else Path()
        folders += [mount / inside, *(mount / part for part in inside.parents)]
    return folders


def _quota(folder: Path) -> float | None:
    """Processors that one control group grants, None where it does not limit them."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit_us <= 0 else limit_us / int((folder / "cpu.cfs_period_us").read_text())
    return None


def _unescaped(field: str) -> str:
    """A path of mountinfo, where blanks and backslashes are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
