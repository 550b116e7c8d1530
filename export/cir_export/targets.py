"""Where a bundle is written to."""

from __future__ import annotations

import os
from pathlib import Path

from cir_infer.errors import ExportError

__all__ = ["check_target"]


def check_target(path: Path) -> None:
    """Says before any work whether a bundle could be written there.

    Raises:
        ExportError: it is a folder, in none, or in one that cannot be written to.
    """
    if path.is_dir():
        found = "it is a folder"
    elif not path.parent.is_dir():
        found = f"{path.parent} is not a folder"
    elif not os.access(path.parent, os.W_OK):
        found = f"{path.parent} is read only for you"
    else:
        return
    raise ExportError(f"{path} cannot be written: {found}")
