"""How much memory a process may still take without taking it from others."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["promised", "spare_memory"]

_promises: list[tuple[int, int]] = []
"""The process and the bytes of each promise. A list, and no lock, which a forked child might find locked."""


@contextmanager
def promised(size: int) -> Iterator[None]:
    """Memory for the time of the block, beside what other threads of this process are promised.

    Args:
        size: in bytes.

    Raises:
        OSError: as much is not left.
    """
    own = os.getpid(), size
    _promises.append(own)
    try:
        others = sum(wanted for process, wanted in list(_promises) if process == own[0]) - size
        spare = spare_memory()
        if spare is not None and spare < others + size:
            left = max(0, spare - others)
            need = f"{left >> 20:,} MiB of memory are left, and {size >> 20:,} are wanted"
            raise OSError(errno.ENOMEM, need)
        yield
    finally:
        _promises.remove(own)


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
