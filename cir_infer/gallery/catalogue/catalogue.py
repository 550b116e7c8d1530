"""The catalogue: one SQLite file that says what the gallery holds.

A commit is one SQLite transaction in WAL mode with synchronous=FULL: when it returns, the log is
on the disk. What the tables hold is in `tables`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cir_infer.errors import GalleryError, shown
from cir_infer.gallery.catalogue import schema, tables
from cir_infer.gallery.catalogue.lineage import skip_generation
from cir_infer.gallery.catalogue.upgrade import insert_header, upgrade
from cir_infer.gallery.catalogue.witness import NAME as WITNESS
from cir_infer.gallery.catalogue.witness import Witness
from cir_infer.gallery.disk.folder import CATALOGUE, Folder
from cir_infer.gallery.disk.locks import GalleryBusyError, Hold
from cir_infer.gallery.sqlite.connections import Connections
from cir_infer.gallery.sqlite.links import Link
from cir_infer.processes.announcing import forks_wait

__all__ = ["Catalogue", "OutcomeUnknownError"]


class OutcomeUnknownError(GalleryError):
    """A commit failed in its last step, on a disk that cannot take back what it was given either."""


_SQLITE_ERRORS = (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError)
"""What reading a damaged file raises; the last where the bytes of a text are none."""


class Catalogue:
    """The SQLite side of a gallery: reading side by side, and commits of whoever holds the writer lock.

    Args:
        folder: of the gallery.

    Attributes:
        links: the connections.
        identities: what `tables.identities` said when it was opened.

    Raises:
        GalleryError: the catalogue is damaged, foreign, of a newer format, or may not be read so.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._path = folder.path / CATALOGUE
        self.links = Connections(folder)
        self._witness = Witness(folder)
        try:
            with self.reading() as connection:
                self._check(connection)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(path: Path, encoding: tables.Encoding, origin: str | None = None) -> None:
        """Write an empty catalogue, durable when this returns; for a backup, with the gallery that it is of.

        Raises:
            GalleryError: the disk is full or fails.
        """
        try:
            address = f"file:{quote(os.fsencode(path.absolute()))}?mode=rwc"
            with forks_wait(), closing(sqlite3.connect(address, uri=True, isolation_level=None)) as link:
                link.execute("PRAGMA journal_mode = WAL").fetchone()
                link.execute("PRAGMA synchronous = FULL")
                link.execute("BEGIN IMMEDIATE")
                for statement in schema.SCHEMAS[schema.PLAIN_VERSION].values():
                    link.execute(statement)
                link.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                link.execute(f"PRAGMA user_version = {schema.PLAIN_VERSION}")
                numbers = {"generation": 1, "next_key": 1, "next_segment": 1, "encoding": encoding.number}
                insert_header(link, numbers, {}, origin)
                tables.insert_encoding(link, encoding)
                link.execute("COMMIT")
        except sqlite3.Error as error:
            raise _told(path, "creating the catalogue", error) from error

    def close(self) -> None:
        """Close every connection that is not in use; the others close when given back."""
        self.links.close()
        self._witness.close()

    @contextmanager
    def reading(self) -> Iterator[tables.Connection]:
        """A connection for reading, given back at the end of the block; SQLite errors become GalleryError."""
        link = None
        try:
            with self.unexchanged():
                link = self.links.take()
            yield link
        except _SQLITE_ERRORS as error:
            self.check_place()
            raise _told(self._path, "reading the catalogue", error) from error
        finally:
            if link is not None:
                self.links.give_back(link)

    def check_place(self) -> None:
        """Make sure that the folder, what lies in it and the log are what was opened.

        Raises:
            GalleryError: they are not.
        """
        self._folder.check()
        self.links.check_log()

    @contextmanager
    def unexchanged(self) -> Iterator[None]:
        """Let errors of a block blame the data only where these are still what was opened.

        Whoever exchanges a gallery removes the old one soon, and perhaps between two steps of a call
        that reads it. What is missing then is no damage.
        """
        try:
            yield
        except (GalleryBusyError, OutcomeUnknownError):
            raise
        except GalleryError:
            self.check_place()
            raise

    def commit(self, change: tables.Change, hold: Hold, *, visible: bool = True) -> None:
        """Make a change in one transaction: it is on the disk when this returns, or as if never begun.

        Args:
            change: statements.
            hold: the writer lock; it learns the new generation, and that a change is durable.
            visible: False where it is no new generation: no snapshot may show the difference.

        Raises:
            OutcomeUnknownError: the disk died under the very last step.
            GalleryError: the transaction failed, or somebody else has written since the lock was taken;
                nothing of it is visible, now or later.
        """
        committing = False
        before = hold.generation
        try:
            link = self.links.take_writer()
        except _SQLITE_ERRORS as error:
            raise _told(self._path, "writing the catalogue", error) from error
        try:
            # The end of these blocks is C code: whatever comes, the transaction does not stay open.
            with link, link:
                link.execute("BEGIN IMMEDIATE")
                before = self._expect(link, hold)
                upgrade(link, self._folder.path)
                change(link)
                tables.set_header(link, "generation", before + visible)
                uuid = tables.identity(link)
                committing = True
                link.execute("COMMIT")
            _learn(hold, before + visible, visible)
            if visible and uuid is not None:
                self._witness.tell(uuid, before + 1)
        except BaseException as error:
            if not isinstance(error, _SQLITE_ERRORS):
                if committing and visible and self.generation() > before:
                    _learn(hold, before + 1, True)
                raise
            hold.generation = 0
            if committing and not self._overwrite(link) and not _wrote_too_little(error):
                raise OutcomeUnknownError(
                    f"{self._folder.path}: the disk failed in the last step of a commit and keeps failing "
                    f"({shown(error)}); whether the change is there shows when the gallery is opened again"
                ) from error
            raise _told(self._path, "writing the catalogue", error) from error
        finally:
            self.links.give_back_writer(link)
        lost = self.links.lost_of_log()
        if lost is not None:
            hold.durable = False
            try:
                self._folder.check()
            except GalleryError as error:
                raise OutcomeUnknownError(
                    f"{error} (during a commit; its change is lost or is where the gallery is now)"
                ) from error
            raise OutcomeUnknownError(
                f"{self._folder.path}: its log ({lost}) was removed, replaced or cut during a commit; "
                "whether the change is there shows when the gallery is opened again"
            )

    def _overwrite(self, link: Link) -> bool:
        """Make sure that a commit that failed stays failed; False if that failed too.

        If only its last fsync failed, it lies complete in the log, and the next process that reads
        the log would find it. One more commit takes its place there.
        """
        try:
            with link, link:
                link.execute("BEGIN IMMEDIATE")
                upgrade(link, self._folder.path)
                skip_generation(link)
                link.execute("COMMIT")
        except (sqlite3.Error, GalleryError):
            return False
        return True

    def _expect(self, link: Link, hold: Hold) -> int:
        generation = tables.header(link, "generation")
        if hold.generation not in (0, generation):
            raise GalleryError(
                f"{self._folder.path}: somebody else has written to it since this process took its lock "
                "(was its lock file removed?); nothing was changed, try again"
            )
        return generation

    # ---- reading

    def _check(self, connection: tables.Connection) -> None:
        schema.check(connection, self._folder.path)
        self.identities = tables.identities(connection)
        # What was acknowledged is asked first: a commit in between may only make the catalogue newer.
        acknowledged = self._witness.generation(self.identities[0] if self.identities else None)
        found = tables.header(connection, "generation")
        if found < acknowledged:
            raise GalleryError(
                f"{self._folder.path}: its catalogue is at commit {found}, but commit {acknowledged} was "
                "acknowledged: its log was damaged, or the catalogue comes from an older copy; restore the "
                f"gallery from a copy, or remove its file {WITNESS} to go on with what is left"
            )

    def generation(self) -> int:
        """The number of the newest commit."""
        with self.reading() as connection:
            return tables.header(connection, "generation")

    def state(self) -> tables.State:
        """The newest generation, read in one transaction."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            return tables.read_state(connection)

    def keys_of(self, ids: Sequence[str]) -> list[int]:
        """Every key that one of the ids has or had."""
        with self.reading() as connection:
            return [
                key
                for chunk in tables.chunks(ids)
                for (key,) in connection.execute(
                    f"SELECT key FROM items WHERE id IN ({','.join('?' * len(chunk))})", chunk
                )
            ]

    def columns(self, names: Sequence[str], keys: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """Some columns of the items ("id", "metadata", "source", "stamp") for some keys."""
        assert set(names) <= {"id", "metadata", "source", "stamp"}
        found: dict[int, tuple[Any, ...]] = {}
        with self.reading() as connection:
            for chunk in tables.chunks(keys):
                marks = ",".join("?" * len(chunk))
                rows = connection.execute(
                    f"SELECT key, {', '.join(names)} FROM items WHERE key IN ({marks})", chunk
                )
                found.update({row[0]: row[1:] for row in rows})
        return found

    def sourced(self, root: str) -> list[tuple[str, int, str]]:
        """(id, key, source) of the items, buried ones too, whose source begins with `root`."""
        with self.reading() as connection:
            return connection.execute(
                "SELECT id, key, source FROM items WHERE substr(source, 1, ?) = ? ORDER BY key",
                (len(root), root),
            ).fetchall()


def _learn(hold: Hold, generation: int, durable: bool) -> None:
    hold.generation = generation
    hold.durable = hold.durable or durable


def _wrote_too_little(error: Exception) -> bool:
    """Whether a COMMIT failed before its last frame was in the log: a write failed, not the fsync behind it.

    Python 3.10 does not tell write and fsync apart, but for a full disk.
    """
    write_failed = (13, 778)  # SQLITE_FULL, SQLITE_IOERR_WRITE
    return getattr(error, "sqlite_errorcode", None) in write_failed or "full" in str(error)


def _told(path: Path, action: str, error: Exception) -> GalleryError:
    """What went wrong in words of our own; SQLite's are kept as the cause."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or any(words in text for words in _DAMAGED):
        return GalleryError(
            f"{path}: {action} failed: the file is damaged ({shown(error)}); restore the gallery from a copy"
        )
    known = next((said for words, said in _KNOWN.items() if words in text), None)
    if known is None:
        return GalleryError(f"{path}: {action} failed ({shown(error)}); run cir-gallery verify")
    return GalleryError(f"{path}: {known.format(action=action)}")


_DAMAGED = ("malformed", "not a database", "encrypted", "no such table", "no such column", "constraint")

_KNOWN = {
    "full": "the disk is full, so {action} failed; free some space and try again (the gallery is as it was "
    "before)",
    "I/O": "the disk failed or has no space left, so {action} failed; free some space, check the disk and "
    "try again (the gallery is as it was before)",
    "unable to open": "{action} failed, for a file of it cannot be opened; check the permissions of its "
    "folder and the limit of open files (ulimit -n)",
    "locked": "{action} failed, for another program keeps the catalogue locked; close it and try again",
    "readonly": "{action} failed, for it may not be written to from here; check the permissions",
    "out of memory": "{action} failed, for there is not enough memory",
    "interrupted": "{action} was interrupted; the gallery is as it was before",
}
