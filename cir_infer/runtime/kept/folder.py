"""Folders of what is kept, which nobody else may write to, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cir_infer.errors import shown
from cir_infer.processes.outputs import replacing

__all__ = ["is_news", "kept_folder", "not_only_ours", "whose", "write_sealed"]


_TOLD: set[tuple[Path | str, int | None]] = set()
"""What is of no use, with the number of the reason."""


def is_news(what: Path | str, reason: int | None) -> bool:
    """Whether this process has not told yet that a folder, or something else, is of no use.

    Args:
        what: it.
        reason: the number of the system's error.
    """
    if (what, reason) in _TOLD:
        return False
    _TOLD.add((what, reason))
    return True


def kept_folder(variable: str, name: str) -> Path:
    """Where something is kept.

    Args:
        variable: of the environment, that names the folder.
        name: of the folder below cir-infer in the user's cache folder, where the variable does not.

    Raises:
        OSError: the user has no home folder, as in a container that runs under a number.
    """
    chosen = os.environ.get(variable)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(chosen).expanduser() if chosen else Path(base).expanduser() / "cir-infer" / name
    except RuntimeError as error:
        place = shown(chosen or base, 60)
        raise OSError(
            errno.ENOENT, f"this user has no home folder, so {place} is nowhere; set {variable}"
        ) from error


def not_only_ours(folder: Path) -> str | None:
    """Make a folder, if it is not there, and say why others than this user and root may write to it.

    Returns:
        See `whose`, with what to do where the folder can stay.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    status = folder.stat()
    reason = whose(status)
    return f"{reason}; run `chmod go-w {folder}`" if reason and _is_mine(status) else reason


def whose(status: os.stat_result) -> str | None:
    """Why others than this user and root may write to a file or folder; None where they may not."""
    if not _is_mine(status):
        return f"it belongs to another user (number {status.st_uid})"
    return "other users may write to it" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _is_mine(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def write_sealed(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all, readable by this user alone.

    Args:
        path: an existing file is replaced.
        parts: of its content, in order.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path, 0o600) as file:
        for part in parts:
            file.write(part)
