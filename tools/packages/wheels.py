"""Wheels from the index that pip uses, for checks against libraries that are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["download"]


def download(folder: Path, *what: str) -> Path:
    """One wheel, without what it needs: `NAME==VERSION`, and options of pip's.

    Raises:
        subprocess.CalledProcessError: pip fails, and has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.whl"))
    wheel = ["--no-deps", "--only-binary=:all:", "-q", "-d", ".", *what]
    # `-m` imports from the folder in which it runs, so not from where this was called.
    subprocess.run([sys.executable, "-m", "pip", "download", *wheel], check=True, cwd=folder)
    new = set(folder.glob("*.whl")) - before
    name = what[0].partition("==")[0].replace("-", "_")
    return next(iter(new or (path for path in before if path.name.startswith(name))))
