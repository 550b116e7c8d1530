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
from cir_infer.gallery.folder import located_absolutely
from cir_infer.gallery.outcome import tell_durable

__all__ = ["drafted", "filled", "identity_of", "is_vacant", "sweep"]

_ENDING = ".cir-draft"
_INSIDE = "gallery"
_EMPTY = {"rows": frozenset[str](), "readers": frozenset(("0",))}
"""The folders of an empty gallery, and what may be in them."""


@contextmanager
def drafted(path: Path, *, replacing: bool = False) -> Iterator[Path]:
    """Build a folder or file under another name; it gets its own at the end of the block, all at once.

    Args:
        path: where it belongs.
        replacing: it takes the place of what the path is, which is then removed.

    Raises:
        GalleryError: the path exists, the disk is full or fails. Nothing is left.
    """
    path = located_absolutely(path)
    if not replacing and (path.exists() or path.is_symlink()):
        raise GalleryError(f"{path}: already exists; open it, or choose another path")
    draft = path
    begun: list[object] = []
    try:
        with files.told_as_gallery_error("writing it", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            draft, lock = _begin(path)
            with lock, lock:
                yield draft
                begun.append(identity_of(draft))
                _publish(draft, path, replacing)
                _discard(draft)
            files.sync_folder(path.parent)
    except BaseException as error:
        if begun and identity_of(path) in begun:
            tell_durable(error, f"{path} is whole and in its place")
        if draft != path:
            _discard(draft)
        raise


def identity_of(path: Path) -> object:
    """Device and inode, None where nothing is."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def filled(path: Path, last: str) -> Iterator[Path]:
    """Build the contents of an empty folder that is there already, as a volume is; nothing can replace that.

    Args:
        path: the folder, see `is_vacant`.
        last: the entry that makes it whole; the others move in before.

    Raises:
        GalleryError: the disk is full or fails. The folder is vacant still.
    """
    path = located_absolutely(path)
    begun: list[object] = []
    draft: Path | None = None
    try:
        with files.told_as_gallery_error("writing it", path):
            sweep(path / _INSIDE)
            draft, lock = _begin(path / _INSIDE)
            with lock, lock:
                yield draft
                begun.append(identity_of(draft / last))
                _clear(path)
                names = [entry.name for entry in os.scandir(draft)]
                for name in sorted(names, key=lambda name: (name == last, name)):
                    if name == last:
                        files.sync_folder(path)
                    (draft / name).rename(path / name)
                draft.rmdir()
                files.remove(_lock_of(draft))
            files.sync_folder(path)
    except BaseException as error:
        if begun and identity_of(path / last) in begun:
            tell_durable(error, f"{path} is whole and in its place")
        if draft is not None:
            _discard(draft)
        raise


def is_vacant(path: Path) -> bool:
    """Whether a path is a folder in which nothing is, but what file systems and killed runs leave there."""
    try:
        return path.is_dir() and all(map(_is_leftover, os.scandir(path)))
    except OSError:
        return False


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return False
    if entry.name in _EMPTY:
        return entry.is_dir() and {inner.name for inner in os.scandir(entry.path)} <= _EMPTY[entry.name]
    return entry.name == "lost+found" or _draft_of(_INSIDE).fullmatch(entry.name) is not None


def _clear(path: Path) -> None:
    """Make room where a run was killed that had begun to fill the folder."""
    for name, inner in _EMPTY.items():
        for entry in inner:
            files.remove(path / name / entry)
        with suppress(OSError):
            (path / name).rmdir()


def _draft_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}{re.escape(_ENDING)}(\.lock)?")


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


def _publish(draft: Path, path: Path, replacing: bool) -> None:
    """Give a draft its name, which nobody may have taken meanwhile; or exchange it with what is there."""
    if replacing:
        files.exchange(draft, path)
    elif draft.is_dir():
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
