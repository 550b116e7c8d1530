"""The catalogue: one SQLite file that says what the gallery holds.

A commit is one SQLite transaction in WAL mode with synchronous=FULL: when it returns, the log is
on the disk. What the tables hold is in `tables`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any
from urllib.parse import quote

from cir_infer.errors import GalleryError
from cir_infer.gallery import schema, tables
from cir_infer.gallery.checksums import insert
from cir_infer.gallery.upgrade import insert_header, upgrade
from cir_infer.gallery.witness import NAME as WITNESS
from cir_infer.gallery.witness import Witness

__all__ = ["Catalogue", "OutcomeUnknownError"]


class OutcomeUnknownError(GalleryError):
    """A commit failed in its last step, on a disk that cannot take back what it was given either."""


_SQLITE_ERRORS = (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError)
"""What reading a damaged file raises; the last where the bytes of a text are none."""


class Catalogue:
    """The SQLite side of a gallery.

    Reading connections are pooled, so threads read side by side; the writing connection belongs
    to whoever holds the writer lock.
    """

    def __init__(self, path: Path, *, immutable: bool = False) -> None:
        self._path = path
        self._immutable = immutable
        self._pool: LifoQueue[sqlite3.Connection] = LifoQueue(maxsize=16)
        self._writer: sqlite3.Connection | None = None
        self._closed = False
        self._witness = Witness(path.parent)
        if path.is_symlink() or not path.is_file():
            raise GalleryError(
                f"{path.parent}: not a gallery (no {path.name} in it); create one with cir-index "
                "or Gallery.create"
            )
        try:
            with self.reading() as connection:
                self._check(connection)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(path: Path, encoding: tables.Encoding) -> None:
        """Write an empty catalogue, durable when this returns.

        Raises:
            GalleryError: the disk is full or fails.
        """
        connection = None
        try:
            connection = _connect(path, "rwc")
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in schema.SCHEMAS[schema.FORMAT_VERSION].values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {schema.FORMAT_VERSION}")
            numbers = {"generation": 1, "next_key": 1, "next_segment": 1, "encoding": encoding.number}
            insert_header(connection, numbers, {})
            insert(connection, "encodings", [encoding])
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _told(path, "creating the catalogue", error) from error
        finally:
            if connection is not None:
                connection.close()

    # ---- connections

    @contextmanager
    def reading(self) -> Iterator[tables.Connection]:
        """A connection for reading, given back at the end of the block; SQLite errors become GalleryError."""
        if self._closed:
            raise GalleryError(f"{self._path.parent}: this gallery is closed; open it again")
        connection = None
        try:
            try:
                connection = self._pool.get_nowait()
            except Empty:
                connection = self._open_reader()
            yield connection
        except _SQLITE_ERRORS as error:
            raise _told(self._path, "reading the catalogue", error) from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _open_reader(self) -> sqlite3.Connection:
        connection = _connect(self._path, "ro&immutable=1" if self._immutable else "rw")
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _give_back(self, connection: tables.Connection) -> None:
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.rollback()
        if not self._closed:
            with suppress(Exception):
                self._pool.put_nowait(connection)
                return
        connection.close()

    @contextmanager
    def writing(self, *, visible: bool = True) -> Iterator[tables.Connection]:
        """A write transaction: committed and on the disk at the end of the block, or as if never begun.

        The caller holds the writer lock. With visible=False it is no new generation: no snapshot
        may show the difference.

        Raises:
            OutcomeUnknownError: the disk died under the very last step.
            GalleryError: the transaction failed; nothing of it is visible, now or later.
        """
        if self._closed:
            raise GalleryError(f"{self._path.parent}: this gallery is closed; open it again")
        committing = False
        try:
            if self._writer is None:
                self._writer = _connect(self._path, "rw")
                self._writer.execute("PRAGMA synchronous = FULL")
                self._writer.execute("PRAGMA cache_size = -65536")
                self._writer.execute("PRAGMA journal_size_limit = 67108864")
            self._writer.execute("BEGIN IMMEDIATE")
            upgrade(self._writer, self._path.parent)
            yield self._writer
            generation = tables.header(self._writer, "generation") + visible
            tables.set_header(self._writer, "generation", generation)
            uuid = tables.identity(self._writer)
            committing = True
            self._writer.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if not isinstance(error, _SQLITE_ERRORS):
                raise
            if committing and not self._overwrite() and not _wrote_too_little(error):
                raise OutcomeUnknownError(
                    f"{self._path.parent}: the disk failed in the last step of a commit and keeps failing "
                    f"({error}); whether the change is there shows when the gallery is opened again"
                ) from error
            raise _told(self._path, "writing the catalogue", error) from error
        if visible and uuid is not None:
            self._witness.tell(uuid, generation)

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._writer is not None and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _overwrite(self) -> bool:
        """Make sure that a commit that failed stays failed; False if that failed too.

        If only its last fsync failed, it lies complete in the log, and the next process that reads
        the log would find it. One more commit takes its place there.
        """
        if self._writer is None:
            return True
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            upgrade(self._writer, self._path.parent)
            tables.set_header(self._writer, "generation", tables.header(self._writer, "generation") + 1)
            self._writer.execute("COMMIT")
        except (sqlite3.Error, GalleryError):
            self._roll_back()
            return False
        return True

    def close(self) -> None:
        """Close every connection that is not in use; the others close when given back."""
        self._closed = True
        if self._writer is not None:
            with suppress(sqlite3.Error):
                self._writer.close()
            self._writer = None
        self._witness.close()
        while True:
            try:
                self._pool.get_nowait().close()
            except Empty:
                return

    # ---- reading

    def _check(self, connection: tables.Connection) -> None:
        schema.check(connection, self._path.parent)
        # What was acknowledged is asked first: a commit in between may only make the catalogue newer.
        acknowledged = self._witness.generation(tables.identity(connection))
        found = tables.header(connection, "generation")
        if found < acknowledged:
            raise GalleryError(
                f"{self._path.parent}: its catalogue is at commit {found}, but commit {acknowledged} was "
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

    def keys_of(self, item: str) -> list[int]:
        """Every key that the id has or had, ascending."""
        with self.reading() as connection:
            return [
                key
                for (key,) in connection.execute("SELECT key FROM items WHERE id = ? ORDER BY key", (item,))
            ]

    def keys_of_all(self, ids: Sequence[str]) -> list[int]:
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
                found.update((row[0], row[1:]) for row in rows)
        return found

    def sourced(self, root: str) -> list[tuple[str, int, str]]:
        """(id, key, source) of the items, buried ones too, whose source begins with `root`."""
        with self.reading() as connection:
            return connection.execute(
                "SELECT id, key, source FROM items WHERE substr(source, 1, ?) = ? ORDER BY key",
                (len(root), root),
            ).fetchall()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=30,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        # The file may come from anywhere: nothing in it may call functions, and its pages are checked.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA mmap_size = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _wrote_too_little(error: Exception) -> bool:
    """Whether a COMMIT failed before its last frame was in the log: a write failed, not the fsync behind it.

    Python 3.10 does not tell write and fsync apart, but for a full disk.
    """
    write_failed = (13, 778)  # SQLITE_FULL, SQLITE_IOERR_WRITE
    return getattr(error, "sqlite_errorcode", None) in write_failed or "full" in str(error)


def _told(path: Path, action: str, error: Exception) -> GalleryError:
    text = str(error)
    if "full" in text:
        return GalleryError(
            f"{path}: the disk is full, so {action} failed; free some space and try again "
            "(the gallery is as it was before)"
        )
    foreign = isinstance(error, UnicodeDecodeError)
    if foreign or "malformed" in text or "not a database" in text or "encrypted" in text:
        return GalleryError(
            f"{path}: {action} failed: the file is damaged ({text}); restore the gallery from a copy"
        )
    return GalleryError(f"{path}: {action} failed: {text}")
