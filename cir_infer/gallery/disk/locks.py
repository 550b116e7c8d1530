"""Who may write, and which generations are still being read: advisory locks that die with a process.

Each lock is an `flock` on an open file. The file is closed, and with it the lock given back, by C code and
at the latest when the object dies, so that no interrupt leaves one behind. A forked child closes what it
inherited, except for pins, and holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import struct
import sys
import time
import weakref
from contextlib import AbstractContextManager, suppress
from threading import get_ident
from typing import Any

from cir_infer.errors import GalleryError, lack
from cir_infer.gallery.disk.files import is_regular, open_as, open_file, reason
from cir_infer.gallery.disk.folder import LOCK, Folder
from cir_infer.processes.folders import OpenFolder
from cir_infer.processes.locked_files import locked_file
from cir_infer.processes.turns import Claim, Token

__all__ = ["EVERYTHING", "GalleryBusyError", "Hold", "Pin", "WriterLock", "keep_writers_out", "oldest_pin"]

EVERYTHING = "0"
"""The pin file that is there from the start and protects every generation."""

_FLOCK = "hhqqi4x"
"""The C structure of a POSIX lock on 64-bit Linux: type, whence, start, length, process."""

_HAS_OPEN_FILE_LOCKS = (
    hasattr(fcntl, "F_OFD_SETLK") and sys.platform.startswith("linux") and sys.maxsize > 1 << 32
)

_LONGEST_PAUSE = 0.05
_SHORT_PAUSE = 0.002


class GalleryBusyError(GalleryError):
    """Somebody else is writing to the gallery at the moment."""


class Hold(io.FileIO):
    """The writer lock, held until this is closed (by the end of a `with`, which is C code) or dies.

    Two locks make turns of it, so that a writer who commits again and again cannot keep others waiting:
    whoever has the one on byte 1 is the next to have the other, which is the writer lock itself.

    Attributes:
        generation: of the gallery, as the holder knows it; 0 before it has looked.
        durable: whether the call that holds the lock has made a change that is on the disk.
    """

    next: bool = False
    process: int = 0
    thread: int = 0
    generation: int = 0
    durable: bool = False


_lines: weakref.WeakValueDictionary[tuple[int, int], _Line] = weakref.WeakValueDictionary()
"""Who waits in this process, by device and inode of the gallery's folder: first come, first served."""

_holds: weakref.WeakValueDictionary[tuple[int, int], Hold] = weakref.WeakValueDictionary()
"""The writer locks that this process holds, by device and inode of the lock file."""


class _Waiting(Claim):
    """A call that waits for the writer lock in this process."""

    def __init__(self, token: Token, lock: WriterLock) -> None:
        super().__init__(token)
        self.lock = weakref.ref(lock)
        self.thread = get_ident()
        self.hold: weakref.ref[Hold] | None = None

    def give_up(self, line: _Line) -> None:
        """Leave without the lock."""
        hold = None if self.hold is None else self.hold()
        if hold is not None:
            hold.close()
        self.leave(line)

    def leave(self, line: _Line) -> None:
        """Let the next one go on, and forget whoever died in the line."""
        self.over = True
        for one in [one for one in list(line) if not one.held]:
            with suppress(ValueError):
                line.remove(one)


class _Line(list[_Waiting]):
    """Calls in the order in which they came."""


class WriterLock:
    """One writer at a time: re-entrant for a thread, awaited by other threads and, for a while, by others.

    Args:
        folder: of the gallery.
        wait: how many seconds to wait for a writer that is not of this object.
    """

    def __init__(self, folder: Folder, wait: float) -> None:
        self._folder = folder
        self._wait = wait
        self._last: weakref.ref[Hold] | None = None
        self._line = _lines.setdefault(folder.identity, _Line())

    @property
    def hold(self) -> Hold | None:
        """What this thread holds the lock by, None where it does not."""
        hold = None if self._last is None else self._last()
        if hold is None or hold.closed or (hold.process, hold.thread) != (os.getpid(), get_ident()):
            return None
        return hold

    def acquire(self) -> AbstractContextManager[Any]:
        """Take the lock; it is held until what is returned is closed, which a `with` does.

        A `with` of a thread that has the lock already closes nothing. To be safe from interrupts at its
        end as well, enter it twice: `with lock.acquire() as hold, hold:`.

        Raises:
            GalleryBusyError: another process (or another Gallery object) is writing, and went on for
                longer than this may wait.
            GalleryError: the lock cannot be taken at all.
        """
        if self.hold is not None:
            return io.BytesIO()
        token = Token()
        claim = _Waiting(token, self)
        line = self._line
        try:
            try:
                for one in list(line):  # what an interrupted call of this thread left
                    if one.thread == claim.thread:
                        one.over = True
                line.append(claim)
                return self._wait_for(claim, line)
            except BaseException:
                claim.give_up(line)
                raise
        except BaseException:
            claim.give_up(line)
            raise

    def _wait_for(self, claim: _Waiting, line: _Line) -> Hold:
        until = time.monotonic() + self._wait
        pause = 0.001
        hold: Hold | None = None
        while True:
            first = next(one for one in list(line) if one.held)
            sibling = held_here(self._folder)
            if sibling is None and first is claim:
                hold = self._opened(hold)
                # Weakly: where nobody else has it any more, it is closed.
                claim.hold = weakref.ref(hold)
                if self._taken(hold):
                    claim.leave(line)
                    return hold
                holder = _holder(hold)
            elif self._of_this(sibling, first):
                until = time.monotonic() + self._wait + 1
            else:
                holder = "another Gallery object of this process is writing to this gallery"
                if sibling is not None and sibling.thread == get_ident():
                    until = 0.0  # it would wait for itself
            if time.monotonic() >= until:
                raise self._busy(holder)
            time.sleep(pause)
            near = sibling is not None or (hold is not None and hold.next)
            pause = min(1.5 * pause, _SHORT_PAUSE if near else _LONGEST_PAUSE)

    def _of_this(self, sibling: Hold | None, first: _Waiting) -> bool:
        """Whether what keeps a thread waiting is another thread of this object."""
        if sibling is not None:
            return self._last is not None and self._last() is sibling
        return first.lock() is self

    def _busy(self, holder: str) -> GalleryBusyError:
        waited = f" (waited {self._wait:g} s)" if self._wait else ""
        return GalleryBusyError(
            f"{self._folder.path}: {holder}; one writer at a time, so wait for it to end and try "
            f"again{waited}"
        )

    def _opened(self, hold: Hold | None) -> Hold:
        """The lock file, opened anew where it is not what was opened before."""
        if hold is not None:
            if self._is_named(os.fstat(hold.fileno())):
                return hold
            hold.close()
        try:
            return locked_file(open_as, Hold, LOCK, os.O_RDWR | os.O_CREAT, self._folder.fd)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise GalleryError(
                    f"{self._folder.path}: the disk is full, so nothing can be written; free some space"
                ) from error
            self._folder.check_name()
            hint = "it is a link" if error.errno == errno.ELOOP else error.strerror
            lacking = lack(error)
            said = f" ({LOCK}: {hint}); check the permissions or open it with read_only=True"
            raise GalleryError(
                f"{self._folder.path}: cannot be written to"
                + (said if lacking is None else f" now: {lacking}")
            ) from error

    def _taken(self, hold: Hold) -> bool:
        hold.next = hold.next or _set_byte(hold, fcntl.F_WRLCK)
        if not hold.next:
            return False
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise GalleryError(f"{self._folder.path}: cannot be locked: {reason(error)}") from error
        status = os.fstat(hold.fileno())
        if not self._is_named(status):
            fcntl.flock(hold, fcntl.LOCK_UN)
            return False  # somebody removed the file between the two calls; try again with the new one
        _set_byte(hold, fcntl.F_UNLCK)
        _name_plate(hold, fcntl.LOCK_EX)
        hold.process, hold.thread = os.getpid(), get_ident()
        self._last = weakref.ref(hold)
        _holds[(status.st_dev, status.st_ino)] = hold
        return True

    def _is_named(self, status: os.stat_result) -> bool:
        with suppress(OSError):
            named = os.stat(LOCK, dir_fd=self._folder.fd, follow_symlinks=False)
            return (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)
        return False

    def check(self, hold: Hold) -> None:
        """Make sure that the file that is locked is still the one that others would lock.

        Raises:
            GalleryError: it was removed or replaced, so another writer may be at work.
        """
        if not self._is_named(os.fstat(hold.fileno())):
            raise GalleryError(
                f"{self._folder.path}: its {LOCK} was removed or replaced while this process was writing, so "
                "somebody else may be writing too; nothing was changed, try again"
            )


def held_here(folder: Folder) -> Hold | None:
    """Who holds the writer lock in this process. Its file is not opened, for closing it would hide who."""
    with suppress(OSError):
        status = os.stat(LOCK, dir_fd=folder.fd, follow_symlinks=False)
        hold = _holds.get((status.st_dev, status.st_ino))
        if hold is not None and not hold.closed:
            return hold
    return None


def _set_byte(file: io.FileIO, kind: int) -> bool:
    """Become the next writer, or let another become it; at once where there are no such locks."""
    if not _HAS_OPEN_FILE_LOCKS:
        return True
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, 1, 1, 0))
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _name_plate(file: io.FileIO, kind: int) -> None:
    """A second lock, for its one use: the kernel tells who holds it, and forgets it with the process."""
    with suppress(OSError):
        fcntl.lockf(file, kind | fcntl.LOCK_NB, 1)


def _holder(file: io.FileIO) -> str:
    """Who holds the lock on a file, in words; only what is true now."""
    unknown = (
        "somebody who cannot be named from here holds its lock (another process that writes, or reads "
        "without permission to write)"
    )
    if not _HAS_OPEN_FILE_LOCKS:
        return unknown
    with suppress(OSError):
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        kind, _, _, _, process = struct.unpack(_FLOCK, answer)
        if kind == fcntl.F_RDLCK and process > 0:
            return f"process {process} reads this gallery without permission to write, so writers wait"
        if kind == fcntl.F_WRLCK and process > 0:
            return f"process {process} is writing to this gallery"
    return unknown


def keep_writers_out(folder: Folder) -> io.FileIO | None:
    """A shared lock for a reader who cannot announce himself; None where nobody ever wrote.

    Raises:
        GalleryError: somebody is writing.
    """
    if not is_regular(LOCK, folder.fd):
        return None
    try:
        file = locked_file(open_file, LOCK, os.O_RDONLY, folder.fd)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise GalleryError(
            f"{folder.path}: is being written to, and may not be written to from here, which reading "
            "beside a writer needs; wait, or change the permissions of its folders"
        ) from None
    except OSError as error:
        raise GalleryError(f"{folder.path}: cannot be read: {reason(error)}") from error
    _name_plate(file, fcntl.LOCK_SH)
    return file


class Pin:
    """Keeps the files and items of one generation from being swept while a snapshot reads them.

    A shared `flock` on an empty file named after the generation; it vanishes with the process. A forked
    child shares it, and it lasts until both have let it go.

    Args:
        readers: the folder of pins.
        generation: what to keep.
    """

    def __init__(self, readers: OpenFolder, generation: int) -> None:
        self._readers = readers
        self._name = str(generation)
        self._file: io.FileIO | None = None
        try:
            try:
                while not self._set():
                    self.release()
            except BaseException:
                self.release()
                raise
        except BaseException:
            self.release()
            raise

    def _set(self) -> bool:
        """Lock the file; False if a sweeper removed it meanwhile."""
        try:
            self._file = open_file(self._name, os.O_RDWR | os.O_CREAT, self._readers.fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self._name == EVERYTHING:
                raise
            # A full disk must not keep anyone from reading: this file is always there.
            self._name = EVERYTHING
            return False
        fcntl.flock(self._file, fcntl.LOCK_SH)
        return self.is_seen

    @property
    def is_seen(self) -> bool:
        """Whether whoever sweeps can still see it; not if somebody removed its file."""
        if self._file is None or self._file.closed:
            return False
        try:
            named = os.stat(self._name, dir_fd=self._readers.fd, follow_symlinks=False)
        except OSError:
            return False
        status = os.fstat(self._file.fileno())
        return (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)

    @classmethod
    def none(cls) -> Pin:
        """A pin that holds nothing, where writers are kept out by other means."""
        pin = cls.__new__(cls)
        pin._file = None
        return pin

    def release(self) -> None:
        """Let go; further calls do nothing."""
        if self._file is not None:
            self._file.close()


def oldest_pin(readers: OpenFolder, generation: int) -> int | None:
    """The smallest generation that anyone still reads, None where nobody does; sweeps dead pins.

    Pins are empty files whose names are generations up to the current one. Nothing else is touched.
    """
    oldest = None
    for name in readers.names():
        if not _names_generation(name, generation):
            continue
        try:
            status = os.stat(name, dir_fd=readers.fd, follow_symlinks=False)
            if status.st_size or not stat.S_ISREG(status.st_mode):
                continue
            file = locked_file(open_file, name, os.O_RDWR, readers.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                continue
            raise
        with file, file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                oldest = int(name) if oldest is None else min(oldest, int(name))
                continue
            if name != EVERYTHING:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=readers.fd)
    return oldest


def _names_generation(name: str, newest: int) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name and int(name) <= newest


def _after_fork_in_child() -> None:
    _lines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
