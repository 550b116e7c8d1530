"""Files that take the place of what has their name."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cir_infer.errors import UsageError, shown
from cir_infer.processes.folders import OpenFolder, sync_folder
from cir_infer.processes.locked_files import is_claimed, locked_file

__all__ = ["check_apart", "check_replaceable", "check_waits_for_nobody", "replacing", "scratch_beside"]

_ENDING = ".cir-part"
_SCRATCH = ".cir-scratch"
_FOLDER = "it is a folder"


def check_waits_for_nobody(path: Path) -> None:
    """Refuse a name to which nobody can write, or only while somebody else reads; /dev/null is fine.

    Raises:
        OSError: a folder, a pipe or a socket has the name; links are followed.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise OSError(
            errno.EEXIST, _FOLDER if stat.S_ISDIR(mode) else "it is a pipe, no file", os.fspath(path)
        )


def check_replaceable(path: Path) -> None:
    """Refuse a name that no file may take: root could put one in the place of /dev/null, for every program.

    Raises:
        OSError: a folder, a device, a pipe or a socket has the name; links are followed.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing is there, or whatever is wrong with the name is told when it is written to
    if not stat.S_ISREG(mode):
        found = _FOLDER if stat.S_ISDIR(mode) else "it is a device or a pipe, no file"
        raise OSError(errno.EEXIST, found, os.fspath(path))


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write that takes the place of one of this name at the end of the block, or never.

    Until then it has another name (`.model.cir.0123abcd.cir-part`) and is locked. What programs that were
    killed have left of files of this name, and nobody holds, is removed.

    Args:
        path: a link is replaced itself.
        mode: of the file, as far as the process's mask lets it.

    Raises:
        OSError: it cannot be written, or something else than a file has the name.
    """
    check_replaceable(path)
    _sweep(path)
    draft, lock = _begun(path, mode)
    with closing(lock):
        try:
            with draft.open("r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have a new name outlast a loss of power, where the folder can be opened and its file system does it."""
    try:
        sync_folder(folder)
    except PermissionError:
        pass  # one that others may put files into, and not look at
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A folder for what a file of this name is made of, for the time of the block, of this user alone.

    It lies beside the file (`.model.cir.0123abcd.cir-scratch`) and is locked. What killed programs have left
    is removed as by `replacing`, and as there this one is by the next file of that name.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be made.
    """
    _sweep(path)
    process = os.getpid()
    folder, lock = _begun_folder(path)
    with closing(lock):
        try:
            yield folder
        finally:
            if process == os.getpid():  # else a forked child came to its end here
                shutil.rmtree(folder, ignore_errors=True)


def _named(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")


def _begun(path: Path, mode: int) -> tuple[Path, io.FileIO]:
    """A new file, and what holds its lock, which no forked child goes on holding."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        draft = _named(path, _ENDING)
        lock = locked_file(io.FileIO, draft, "r+", True, lambda name, _: os.open(name, flags, mode))
        if is_claimed(lock.fileno(), draft):
            return draft, lock
        lock.close()


def _begun_folder(path: Path) -> tuple[Path, OpenFolder]:
    """The same with a folder."""
    while True:
        folder = _named(path, _SCRATCH)
        folder.mkdir(0o700)
        try:
            lock = locked_file(OpenFolder, folder)
        except FileNotFoundError:
            continue  # another process took it for an old one
        if is_claimed(lock.fd, folder):
            return folder, lock
        lock.close()


def _sweep(path: Path) -> None:
    """Remove what nobody writes any more."""
    endings = "|".join(map(re.escape, (_ENDING, _SCRATCH)))
    own = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}({endings})")
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            found = own.fullmatch(entry.name)
            if found is None:
                continue
            if found[1] == _ENDING and entry.is_file(follow_symlinks=False):
                _remove_unheld(Path(entry.path))
            elif found[1] == _SCRATCH and entry.is_dir(follow_symlinks=False):
                _remove_unheld_folder(Path(entry.path))


def _remove_unheld(place: Path) -> None:
    with suppress(OSError), closing(locked_file(io.FileIO, place, "r+", True, _opened)) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        place.unlink()


def _remove_unheld_folder(place: Path) -> None:
    with suppress(OSError), closing(locked_file(OpenFolder, place)) as folder:
        fcntl.flock(folder.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)


def _opened(name: str, _: int) -> int:
    return os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def check_apart(path: Path, read: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse to write to what is read: a model would be lost to what is made of it.

    Args:
        path: of what is written.
        read: whatever is read, by its name; None, names of nothing and folders are passed over.

    Raises:
        UsageError: one of them is that file, by another name or a link too.
    """
    for one in read:
        try:
            same = one is not None and path.is_file() and path.samefile(one)
        except (OSError, ValueError):
            continue
        if same:
            raise UsageError(
                f"{shown(os.fspath(path))} is read for what would take its place; choose another name"
            )
