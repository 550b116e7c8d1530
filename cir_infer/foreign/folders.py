"""What lies below a stranger's folder, however deep; `Path.rglob` calls itself for each folder in another."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["files_below"]


def files_below(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[Path]:
    """The files of some kinds below a folder, by name. Links to folders are not followed.

    What cannot be listed is left out, and so is what is deeper than the system has paths for.

    Args:
        folder: its path.
        suffixes: as ".png"; capitals are the same.
    """
    found, waiting = [], [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122
                        found.append(Path(entry.path))
        except OSError:
            continue
    return sorted(found)
