"""Drafts: what is made under another name gets its own at the end, all at once.

A draft of `shop.gallery` is called `.shop.gallery.0123abcd.cir-draft`, and a file beside it that ends with
`.lock` is locked while somebody is at work on it. What a killed run left is found by that, and removed by
the next one that makes something of the same name.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cir_infer.errors import GalleryError
from cir_infer.gallery import files
from cir_infer.gallery.outcome import tell_durable

__all__ = ["drafted", "sweep"]

_ENDING = ".cir-draft"


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Build a folder or file under another name; it gets its own at the end of the block, all at once.

    Raises:
        GalleryError: the path exists, the disk is full or fails. Nothing is left.
    """
    path = path.absolute()
    if path.exists() or path.is_symlink():
        raise GalleryError(f"{path}: already exists; open it, or choose another path")
    draft = path
    there = False
    try:
        with files.told_as_gallery_error("writing it", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            draft, lock = _begin(path)
            with lock, lock:
                yield draft
                _publish(draft, path)
                there = True
                files.remove(_lock_of(draft))
            files.sync_folder(path.parent)
    except BaseException as error:
        if there:
            tell_durable(error, f"{path} is whole and in its place")
        elif draft != path:
            _discard(draft)
        raise


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")


def _begin(path: Path) -> tuple[Path, io.FileIO]:
    """The name of a new draft, locked by this process."""
    while True:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ENDING}")
        with suppress(FileExistsError):
            lock = files.open_file(_lock_of(draft), os.O_RDWR | os.O_CREAT | os.O_EXCL)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:  # else somebody took it for an old one
                return draft, lock


def _publish(draft: Path, path: Path) -> None:
    """Give a draft its name, which nobody may have taken meanwhile."""
    if draft.is_dir():
        draft.rename(path)
    else:
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            draft.rename(path)
        else:
            draft.unlink()
    files.sync_folder(path.parent)


def _discard(draft: Path) -> None:
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        files.remove(draft)
    files.remove(_lock_of(draft))


def sweep(path: Path) -> None:
    """Remove the drafts of this name that nobody is at work on any more."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(_ENDING)}\.lock")
    for entry in os.scandir(path.parent):
        if not name.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        draft = path.with_name(entry.name.removesuffix(".lock"))
        with suppress(OSError), files.open_file(entry.path, os.O_RDWR) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(lock.fileno()).st_size:
                _discard(draft)
