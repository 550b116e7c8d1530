"""How much memory a process may still take without taking it from others."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["spare_memory"]


def spare_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the machine, or the container that this is, has to give; None where nobody says.

    Args:
        meminfo: Linux's account of the machine's memory.
        group: the control group, version 2, as a container sees its own.
    """
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text("utf-8", "replace").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                found.append(int(rest.split()[0]) << 10)
    with suppress(OSError, ValueError):  # "max" where nothing is limited
        most = int((group / "memory.max").read_text())
        taken = int((group / "memory.current").read_text())
        with suppress(OSError, ValueError, IndexError):
            for line in (group / "memory.stat").read_text().splitlines():
                name, _, rest = line.partition(" ")
                taken -= int(rest) if name == "inactive_file" else 0  # files' pages, which are given back
        found.append(max(0, most - taken))
    return min(found, default=None)
