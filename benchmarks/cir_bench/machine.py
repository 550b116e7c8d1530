"""What heads a result: the machine that it was measured on, the commit and the moment."""

from __future__ import annotations

import datetime
import re
import subprocess
from pathlib import Path
from typing import Any

import cir_infer
from cir_infer.machine.description import describe_machine, text_of

__all__ = ["commit_of", "peak_host_bytes", "reset_peak_host_bytes", "stamp"]


def stamp() -> dict[str, Any]:
    """What heads every result: `machine`, `commit` and the moment (UTC)."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": describe_machine(),
        "commit": commit_of(Path(cir_infer.__file__).parent),
        "created": now.isoformat(timespec="seconds"),
    }


def commit_of(folder: Path) -> str:
    """The commit of a working tree, with "-dirty" where tracked files differ; else the version.

    Results of benchmarks change no figure, so those that were just written again do not count.
    """
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            [
                *git,
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ":/",
                ":(top,exclude)benchmarks/results",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return f"version {cir_infer.__version__}"
    return f"{commit}-dirty" if changes.strip() else commit


def peak_host_bytes() -> int | None:
    """The most resident memory of this process since the last reset; None where Linux does not tell."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", text_of(Path("/proc/self/status")), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def reset_peak_host_bytes() -> None:
    """Start a new peak from the memory in use; without effect where Linux does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
