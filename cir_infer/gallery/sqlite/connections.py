"""Connections to the catalogue: opened once for each use at a time, proved, kept apart from forks.

SQLite locks with POSIX locks, which belong to a process and not to what was opened:

- Whoever closes any descriptor of a file, to copy it for instance, drops all locks that the process has on
  it. Another process then takes itself for the last one, and removes the log that this one goes on writing
  to. So a `Guard` holds open-file-description locks on the same bytes; those cannot be dropped by others.
- A forked child has the connections and none of the locks, and connections that it opens itself share the
  state of those. So no connection is open during a fork: it waits a moment for those in use and closes
  them, and both processes open new ones. Where that was not possible the child refuses.
"""

from __future__ import annotations

import ctypes
import io
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

from cir_infer.errors import GalleryError
from cir_infer.gallery.disk.files import reason
from cir_infer.gallery.disk.folder import READERS, Folder, Identity
from cir_infer.gallery.disk.locks import held_here, keep_writers_out
from cir_infer.gallery.sqlite import forks, log
from cir_infer.gallery.sqlite.guard import Guard
from cir_infer.gallery.sqlite.links import Link, connected, lacks_space, prove
from cir_infer.processes import announcing
from cir_infer.processes.turns import Turn

__all__ = ["Connections"]

_IDLE = 16
_TRY_AGAIN = 1.0
"""Seconds after which a full disk is tried again: while it is read without a log, nobody can write."""


class _LaterError(GalleryError):
    """Another thread tries to write on a full disk, which is over in a moment."""


_guards: weakref.WeakValueDictionary[Identity, Guard] = weakref.WeakValueDictionary()
_everyone: weakref.WeakSet[Connections] = weakref.WeakSet()
_opening = Turn()
_orphans: list[Link] = []
"""Of galleries that nobody closed and that went while another thread forked."""
_lost: set[Identity] = set()
"""Catalogues that had connections in use when this process was forked."""


class Connections:
    """The connections of one open gallery. Threads may share it.

    Args:
        folder: of the gallery.

    Attributes:
        frozen: nothing can be written here, so the catalogue is read as it lies, without its log.

    Raises:
        GalleryError: it may not be written to and was not closed properly, or somebody is writing.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._idle: list[Link] = []
        self._writers: list[Link] = []
        weakref.finalize(self, _let_go, self._idle, self._writers).atexit = False
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._guard: Guard | None = None
        self._keeping_out: io.FileIO | None = None
        self._closed = False
        # Who may not announce that he reads keeps writers out instead.
        self.announces = os.access(READERS, os.W_OK, dir_fd=folder.fd)
        if not self.announces:
            self._keeping_out = keep_writers_out(folder)
        self.frozen = not os.access(".", os.W_OK, dir_fd=folder.fd)
        if self.frozen:
            self.frozen = log.is_empty(self._folder)
            if not self.frozen and not os.access(log.INDEX, os.R_OK, dir_fd=folder.fd):
                raise GalleryError(
                    f"{folder.path}: was not closed properly and may not be written to from here; "
                    "open it once with permission to write"
                )
        self._may_thaw, self._next_try = not self.frozen, 0.0
        _everyone.add(self)

    # ---- taking and giving back

    def take(self) -> Link:
        """A connection for reading.

        Raises:
            GalleryError: the gallery is closed, exchanged, or belongs to the process before a fork.
            sqlite3.Error: it cannot be opened.
        """
        return self._take(self._idle, self._open_reader)

    def take_writer(self) -> Link:
        """A connection for writing; the caller holds the writer lock."""
        return self._take(self._writers, self._open_writer)

    def _take(self, idle: list[Link], opened: Callable[[], Link]) -> Link:
        me = threading.get_ident()
        # A backup has one already, to another gallery.
        token = announcing.announced(lambda: me in _users())
        try:
            self._check()
            if self.frozen and self._may_thaw and time.monotonic() >= self._next_try:
                _opening.take(self._try_again)
            try:
                link = idle.pop()
            except IndexError:
                link = self._open(opened)
            link.thread = me  # from here on `in_use` tells
            return link
        except OSError as error:
            raise GalleryError(f"{self._folder.path}: cannot be opened: {reason(error)}") from error
        finally:
            del token

    def _open(self, opened: Callable[[], Link]) -> Link:
        until = time.monotonic() + announcing.PATIENCE
        while True:
            try:
                return _opening.take(opened)
            except _LaterError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.001)

    def _check(self) -> None:
        path = self._folder.path
        if self._closed:
            raise self._folder.closed()
        lost = forks.was_unseen() or self._folder.catalogue in _lost
        if lost or not forks.sqlite_works():
            what = "this gallery" if lost else "SQLite, which stays locked in the child"
            raise GalleryError(
                f"{path}: process {os.getpid()} was forked while a call of another thread was using {what}, "
                "so the gallery cannot be used here; fork while no call is running, or start processes with "
                "multiprocessing's 'spawn'"
            )

    def give_back(self, link: Link) -> None:
        """Let others use a connection."""
        with suppress(sqlite3.Error):
            if link.in_transaction:
                link.rollback()
        self._keep(link, self._idle, _IDLE)

    def give_back_writer(self, link: Link) -> None:
        """Keep the connection for the next commit."""
        self._keep(link, self._writers, 1)

    def _keep(self, link: Link, idle: list[Link], most: int) -> None:
        link.thread = 0  # or whoever takes it next would pass for this thread until he has signed it
        if len(idle) < most and link.frozen == self.frozen and link.guard is self._guard:
            idle.append(link)
        else:
            self._retire([link])
            if link.frozen:
                _opening.take(self._let_in)
        if self._closed:
            self.close()

    # ---- opening

    def _open_reader(self) -> Link:
        if not self.frozen:
            try:
                return self._opened()
            except sqlite3.OperationalError as error:
                # SQLite needs space for the files beside the catalogue, even to read.
                if not (lacks_space(error) and self._freeze()):
                    raise
        link = connected(self._folder, "ro&immutable=1")
        link.frozen = True
        link.execute("PRAGMA schema_version").fetchone()
        prove(self._folder, link)
        self._links.add(link)
        return link

    def _freeze(self) -> bool:
        """Read without what must be written, while writers are kept out; False if that cannot be."""
        if not log.is_empty(self._folder):
            return False
        hold = held_here(self._folder)
        if hold is not None:
            if hold.thread == threading.get_ident():
                return False
            raise _LaterError(f"{self._folder.path}: the disk is full; free some space and try again")
        if self._keeping_out is None:
            self._keeping_out = keep_writers_out(self._folder)
        self.frozen, self._guard = True, None
        self._next_try = time.monotonic() + _TRY_AGAIN
        return True

    def _try_again(self) -> None:
        """Do without `frozen` where there is space again, and let writers in."""
        if not self.frozen:  # another thread was first
            return
        self._next_try = time.monotonic() + _TRY_AGAIN
        try:
            link = self._opened()
        except sqlite3.OperationalError as error:
            if not lacks_space(error):
                raise
            self._guard = None
            return
        self.frozen = False
        _close_all(self._idle)
        self._idle.append(link)
        self._let_in()

    def _let_in(self) -> None:
        """Keep writers out no longer, once nothing is open that would not see what they do."""
        blind = self.frozen or any(link.frozen for link in list(self._links))
        if self._keeping_out is not None and self.announces and not blind:
            self._keeping_out.close()
            self._keeping_out = None

    def thaw(self) -> None:
        """Try again to do without `frozen`, before something is written."""
        if not self.frozen or not self._may_thaw:
            return
        self.frozen = False
        self._retire_idle()
        announcing.wait_while(lambda: len(self._links) > 0)  # other threads still read
        if self._keeping_out is not None and self.announces:
            self._keeping_out.close()
            self._keeping_out = None

    def _open_writer(self) -> Link:
        link = self._opened()
        link.execute("PRAGMA query_only = OFF")
        link.execute("PRAGMA synchronous = FULL")
        link.execute("PRAGMA cache_size = -65536")
        link.execute("PRAGMA journal_size_limit = 67108864")
        return link

    def _opened(self) -> Link:
        """A new connection, proved to be one to this gallery and to its log."""
        folder = self._folder
        self.check_log()  # of the guard that this gallery had before it rested
        log.check_parts(folder)
        guard = _guards.get(folder.catalogue)
        if guard is None:
            guard = _guards.setdefault(folder.catalogue, Guard(folder))
        self._guard = guard
        link = connected(folder, "rw")
        link.guard = guard
        guard.links.add(link)
        self._links.add(link)
        try:
            log.keep_log(link, folder.path)
            link.execute("PRAGMA query_only = ON")
            link.execute("PRAGMA schema_version").fetchone()  # opens the log
            guard.lock(folder)
            prove(folder, link)
        except BaseException:
            link.close()
            self._forget(link)
            raise
        guard.parts = guard.parts or log.parts(folder)
        return link

    # ---- the log

    def lost_of_log(self) -> str | None:
        """What of the log is not the file any more that the connections use; None where all is."""
        return None if self._guard is None else self._guard.look(self._folder)[0]

    def check_log(self) -> bytes | None:
        """Make sure that the log is what was opened.

        Returns:
            The state of the catalogue, in bytes that every commit changes; None where only SQLite can tell.

        Raises:
            GalleryError: it is not.
        """
        lost, state = (None, None) if self._guard is None else self._guard.look(self._folder)
        if lost is not None:
            if self._closed:  # by another thread, while this one looked
                raise self._folder.closed()
            raise GalleryError(
                f"{self._folder.path}: its log ({lost}) was removed, replaced or cut while it was open; "
                "nothing more is read of it or written to it, open it again"
            )
        return state

    # ---- closing

    def close(self) -> None:
        """Close every connection that is not in use; the others are closed when given back."""
        self._closed = True
        self._retire_idle()
        if not self._links:
            self._guard = None
            if self._keeping_out is not None:
                self._keeping_out.close()

    def _retire_idle(self) -> None:
        links: list[Link] = []
        for idle in (self._idle, self._writers):
            with suppress(IndexError):
                while True:
                    links.append(idle.pop())
        self._retire(links)

    def _retire(self, links: list[Link]) -> None:
        _opening.take(self._close_links, links)

    def _close_links(self, links: list[Link]) -> None:
        guard = self._guard
        last = guard is not None and self._closed and set(guard.links) <= set(links)
        if guard is not None and last and self.lost_of_log() is None:
            # Else nothing is written back: the log may hold what others have committed.
            guard.unlock()
            # Others of this catalogue whose connections rest have it too, and the log goes in good order.
            guard.parts = {}
        for link in links:
            link.thread = threading.get_ident()  # forks of the thread that used it wait, too
            link.close()
            self._forget(link)
        if guard is not None and last:
            if _guards.get(self._folder.catalogue) is guard:  # whoever opened since then has another
                _guards.pop(self._folder.catalogue, None)
            guard.close()

    def _forget(self, link: Link) -> None:
        self._links.discard(link)
        if link.guard is not None:
            link.guard.links.discard(link)

    # ---- forks

    def in_use(self) -> list[Link]:
        """The connections that calls are using."""
        resting = [*self._idle, *self._writers]
        return [link for link in list(self._links) if not any(link is other for other in resting)]

    def rest(self) -> None:
        """Close what is not in use, the log stays."""
        for idle in (self._idle, self._writers):
            with suppress(IndexError):
                while True:
                    link = idle.pop()
                    link.close()
                    self._forget(link)

    def begin_again(self) -> None:
        """In a forked child: forget what belongs to the parent."""
        links = [*self.in_use(), *self._idle, *self._writers]
        if links:
            _lost.add(self._folder.catalogue)
        for link in links:  # taking them apart would touch the parent's files
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(link))
        self._idle.clear()
        self._writers.clear()
        self._links, self._guard = weakref.WeakSet(), None
        if self._keeping_out is None or self._closed:
            return
        # The lock is the parent's, and closed here by now.
        self._keeping_out, self.frozen = None, not self._may_thaw
        if not self.announces:
            try:
                self._keeping_out = keep_writers_out(self._folder)
            except GalleryError:  # the parent has just let go, and somebody writes
                _lost.add(self._folder.catalogue)


def _let_go(*idle: list[Link]) -> None:
    """Close what a gallery that nobody closed leaves. The collector does that in any thread, at any time."""
    token = announcing.announced(lambda: True)
    try:
        if announcing.another_forks():
            _orphans.extend(link for links in idle for link in links)
        else:
            _close_all(*idle)
    finally:
        del token


def _close_all(*idle: list[Link]) -> None:
    for links in idle:
        with suppress(IndexError):
            while True:
                links.pop().close()


def _before_fork() -> None:
    announcing.begin()
    announcing.wait_while(_busy)
    for one in list(_everyone):
        one.rest()


def _busy() -> bool:
    """Whether other threads take or use a connection."""
    me = threading.get_ident()
    return announcing.are_awaited() or any(thread != me for thread in _users())


def _users() -> Iterator[int]:
    """The threads that use connections, each as often as it does."""
    return (link.thread for one in list(_everyone) for link in one.in_use())


def _after_fork_in_parent() -> None:
    _close_all(_orphans)


def _after_fork_in_child() -> None:
    forks.begin_in_child()
    for link in _orphans:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(link))
    _orphans.clear()
    for one in list(_everyone):
        one.begin_again()
    for guard in list(_guards.values()):
        guard.close()
    _guards.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
