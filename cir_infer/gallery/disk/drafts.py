"""Drafts: what is made under another name gets its own at the end, all at once.

A draft of `shop.gallery` is called `.shop.gallery.0123abcd.cir-draft`, and a file beside it that ends with
`.lock` is locked while somebody is at work on it. What a killed run left is found by that, and removed by
the next one that makes something of the same name.

What fills a folder moves into it part by part. `.moving` in the draft says which parts those are, so that the
next run can tell what a killed one had moved, and take it back.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from cir_infer.errors import GalleryError
from cir_infer.gallery.disk import files
from cir_infer.gallery.disk.folder import located_absolutely
from cir_infer.gallery.disk.outcome import forget_durable, tell_durable
from cir_infer.processes.folders import OpenFolder, sync_folder
from cir_infer.processes.locked_files import locked_file

__all__ = ["INSIDE", "Made", "drafted", "filled", "identity_of", "is_vacant", "sweep", "tell_of"]

_ENDING = ".cir-draft"
INSIDE = "gallery"
"""What the drafts in a folder that is being filled are drafts of."""

_NOTE = ".moving"

Made: TypeAlias = list[tuple[Path, object]]
"""What a call makes: where it belongs, and its identity, known before it is there. Another call may be the
faster one, and what that has made tells nothing of this."""


@contextmanager
def drafted(path: Path, made: Made, *, replacing: bool = False) -> Iterator[Path]:
    """Build a folder or file under another name; it gets its own at the end of the block, all at once.

    Args:
        path: where it belongs.
        made: empty; says what is made here, for `tell_of`.
        replacing: it takes the place of what the path is, which is then removed.

    Raises:
        GalleryError: the path exists, the disk is full or fails. Nothing is left. Or a child that was forked
            in the block comes to its end: the draft is its parent's.
    """
    process = os.getpid()
    path = located_absolutely(path)
    if not replacing and (path.exists() or path.is_symlink()):
        raise GalleryError(f"{path}: already exists; open it, or choose another path")
    drafts: list[Path] = []
    try:
        with files.told_as_gallery_error("writing it", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            draft, lock = _begin(path, drafts)
            with lock, lock:
                yield draft
                _check_process(process, path)
                made.append((path, identity_of(draft)))
                _publish(draft, path, replacing)
                _discard(draft)
            sync_folder(path.parent)
    except BaseException as error:
        if _is_there(made):
            tell_durable(error, f"{path} is whole and in its place")
        for draft in drafts if os.getpid() == process else []:
            _discard(draft)
        raise


def tell_of(error: BaseException, path: Path, made: Made) -> None:
    """Note on an exception whether what a call makes is in its place.

    For calls around `drafted` and `filled`: an interrupt may come between the end of those and theirs.

    Args:
        error: what comes too late to stop it. What was told of the drafts inside is taken back.
        path: where it belongs, as the caller named it.
        made: as `drafted` or `filled` left it.
    """
    forget_durable(error)
    if _is_there(made):
        tell_durable(error, f"{path} is whole and in its place")


def _is_there(made: Made) -> bool:
    return any(identity is not None and identity_of(path) == identity for path, identity in made)


def identity_of(path: Path) -> object:
    """Device and inode, None where nothing is."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def filled(path: Path, made: Made, last: str) -> Iterator[Path]:
    """Build the contents of an empty folder that is there already, as a volume is; nothing can replace that.

    Args:
        path: the folder, see `is_vacant`.
        made: empty; says what is made here, for `tell_of`.
        last: the entry that makes it whole; the others move in before.

    Raises:
        GalleryError: the disk is full or fails, and the folder is vacant still; or another process has
            filled it meanwhile; or a child that was forked in the block comes to its end.
    """
    process = os.getpid()
    path = located_absolutely(path)
    drafts: list[Path] = []
    try:
        with files.told_as_gallery_error("writing it", path):
            with _alone(path):  # what is swept takes its note along
                _take_back(path)
                sweep(path / INSIDE)
            draft, lock = _begin(path / INSIDE, drafts)
            with lock, lock:
                yield draft
                _check_process(process, path)
                made.append((path / last, identity_of(draft / last)))
                with _alone(path):
                    if not is_vacant(path):
                        raise GalleryError(f"{path}: already exists; open it, or choose another path")
                    _take_back(path)
                    _move_in(draft, path, last)
                files.remove(draft / _NOTE)
                draft.rmdir()
                files.remove(_lock_of(draft))
            sync_folder(path)
    except BaseException as error:
        if _is_there(made):
            tell_durable(error, f"{path} is whole and in its place")
        for draft in drafts if os.getpid() == process else []:
            with suppress(OSError):  # what cannot be taken back is the next run's, with the note
                _take_back(path)
                _discard(draft)
        raise


def _check_process(process: int, path: Path) -> None:
    if os.getpid() != process:
        raise GalleryError(
            f"{path}: is being made by process {process}, from which this one was forked meanwhile; end a "
            "forked child with os._exit, or start it with multiprocessing"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One at a time moves into a folder, or takes back."""
    with closing(locked_file(OpenFolder, path)) as folder:
        fcntl.flock(folder.fd, fcntl.LOCK_EX)
        yield


def is_vacant(path: Path) -> bool:
    """Whether a path is a folder in which nothing is, but what file systems and killed runs leave there."""
    try:
        if not path.is_dir():
            return False
        moved = {entry.name for entry, _ in _moved(path)}
        return all(entry.name in moved or _is_leftover(entry) for entry in os.scandir(path))
    except OSError:
        return False


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    known = entry.name == "lost+found" or _drafts_of(INSIDE).fullmatch(entry.name) is not None
    return known and not entry.is_symlink()


def _move_in(draft: Path, path: Path, last: str) -> None:
    names = sorted(entry.name for entry in os.scandir(draft) if entry.name != last)
    _note(draft, [*names, last])
    for name in names:
        (draft / name).rename(path / name)
    sync_folder(path)
    (draft / last).rename(path / last)


def _note(draft: Path, names: list[str]) -> None:
    """Write down, before the first is moved, which parts a draft has, the last one last."""
    parts = [(name, (draft / name).stat().st_ino, _inner(draft / name)) for name in names]
    with files.NewFile(draft / _NOTE) as note:
        note.write(json.dumps(parts).encode())
        note.sync()
    sync_folder(draft)


def _inner(part: Path) -> list[str]:
    return sorted(entry.name for entry in part.iterdir()) if part.is_dir() else []


def _moved(path: Path) -> list[tuple[Path, Path]]:
    """What killed runs had moved into a folder that never became whole: the parts, and whence they came.

    A part is what the note says: of the same name and inode, not in the draft any more, and nothing is in it
    that was not.
    """
    found = []
    for entry in os.scandir(path):
        draft = path / entry.name
        if not _drafts_of(INSIDE).fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        if (draft / _NOTE).is_symlink() or not (draft / _NOTE).is_file():
            continue
        with _abandoned(_lock_of(draft)) as abandoned, suppress(OSError, ValueError, LookupError, TypeError):
            parts = json.loads((draft / _NOTE).read_bytes())
            if not abandoned or not (draft / parts[-1][0]).exists():
                continue
            for name, inode, inner in parts:
                here, there = path / name, draft / name
                if os.path.lexists(there) or here.parent != path or here.is_symlink() or not here.exists():
                    continue
                if here.stat().st_ino == inode and set(_inner(here)) <= set(inner):
                    found.append((here, there))
    return found


def _take_back(path: Path) -> None:
    for here, there in _moved(path):
        here.rename(there)


@contextmanager
def _abandoned(lock: str | Path) -> Iterator[bool]:
    """Whether nobody is at work on the draft of this lock any more, nor will be during the block."""
    with suppress(OSError):
        with locked_file(files.open_file, lock, os.O_RDWR) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield not os.fstat(file.fileno()).st_size
        return
    yield False


def _drafts_of(name: str) -> re.Pattern[str]:
    """Drafts, drafts of drafts, and their locks."""
    ending = rf"\.[0-9a-f]{{8}}{re.escape(_ENDING)}"
    return re.compile(rf"(\.{re.escape(name)}|\.\.{re.escape(name)}{ending}){ending}(\.lock)?")


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")


def _begin(path: Path, drafts: list[Path]) -> tuple[Path, io.FileIO]:
    """The name of a new draft, locked by this process; also in `drafts`, before anything is on the disk."""
    while True:
        drafts[:] = [path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ENDING}")]
        try:
            lock = locked_file(files.open_file, _lock_of(drafts[0]), os.O_RDWR | os.O_CREAT | os.O_EXCL)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:  # else somebody took it for an old one
                return drafts[0], lock
        except (FileExistsError, BlockingIOError):  # or somebody looked at it just now
            drafts.clear()


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
    sync_folder(path.parent)


def _discard(draft: Path) -> None:
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        files.remove(draft)
    files.remove(_lock_of(draft))


def sweep(path: Path) -> None:
    """Remove the drafts of this name that nobody is at work on any more."""
    drafts = _drafts_of(path.name)
    for entry in os.scandir(path.parent):
        if not entry.name.endswith(".lock") or not drafts.fullmatch(entry.name):
            continue
        if not entry.is_file(follow_symlinks=False):
            continue
        with _abandoned(entry.path) as abandoned, suppress(OSError):
            if abandoned:
                _discard(path.with_name(entry.name.removesuffix(".lock")))
