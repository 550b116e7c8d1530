"""Where a bundle is written to."""

from __future__ import annotations

from pathlib import Path

from cir_infer.errors import ExportError

__all__ = ["check_target"]


def check_target(path: Path) -> None:
    """Says before any work whether a bundle could be written there.

    Raises:
        ExportError: it is a folder, or in none.
    """
    if path.is_dir() or not path.parent.is_dir():
        found = "it is a folder" if path.is_dir() else f"{path.parent} is not a folder"
        raise ExportError(f"{path} cannot be written: {found}")
