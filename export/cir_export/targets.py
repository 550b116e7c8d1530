"""Where a bundle is written to."""

from __future__ import annotations

import os
from pathlib import Path

from cir_infer.errors import ExportError
from cir_infer.processes.outputs import check_replaceable

__all__ = ["check_target"]


def check_target(path: Path) -> None:
    """Says before any work whether a bundle could be written there.

    Raises:
        ExportError: it is a folder or a device, in no folder, or in one that cannot be written to.
    """
    found = _obstacle(path)
    if found is not None:
        raise ExportError(f"{path} cannot be written: {found}")


def _obstacle(path: Path) -> str | None:
    try:
        check_replaceable(path)
    except OSError as error:
        return error.strerror
    if not path.parent.is_dir():
        return f"{path.parent} is not a folder"
    return None if os.access(path.parent, os.W_OK) else f"{path.parent} is read only for you"
