"""Temporary folders that belong to one process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["scratch_folder"]


@contextmanager
def scratch_folder(prefix: str, beside: Path | None = None) -> Iterator[Path]:
    """A folder for the time of the block, readable by this user alone.

    That of `tempfile.TemporaryDirectory` is removed by every forked child that ends before the block does.

    Args:
        prefix: of its name.
        beside: the folder in which it lies; None for the system's.

    Raises:
        OSError: it cannot be made.
    """
    process = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
    try:
        yield folder
    finally:
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
