"""The folder of an open gallery: one thing, opened once, and not a name that is looked up again and again.

    shop.gallery/
        catalogue.sqlite        what there is (catalogue/); with -wal and -shm while open
        rows/0000000001.safetensors ...     segments (rows/)
        readers/42              held by whoever reads generation 42 (locks.py)
        writer.lock             held by whoever writes (locks.py)
        retired                 only where other galleries took its place: it refuses every change

Whatever lies in it is reached through its descriptors. So a folder that is renamed, exchanged or linked
elsewhere while it is open never mixes with another; `check` then says that this has happened.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from cir_infer.errors import GalleryError
from cir_infer.gallery.disk.files import open_file, reason
from cir_infer.processes.folders import OpenFolder

__all__ = ["CATALOGUE", "LOCK", "READERS", "ROWS", "Folder", "Identity", "is_retired", "located_absolutely"]

CATALOGUE = "catalogue.sqlite"
JOURNAL = f"{CATALOGUE}-journal"
ROWS = "rows"
READERS = "readers"
LOCK = "writer.lock"
RETIRED = "retired"

_HAS_PROC = Path("/proc/self/fd").is_dir()

Identity = tuple[int, int]
"""Device and inode."""


class Folder:
    """An open gallery folder and the folders in it.

    Args:
        path: the folder; relative to the current folder as it is now.

    Attributes:
        path: absolute.
        rows: the folder of row files.
        readers: the folder of pins.
        catalogue: the identity of the catalogue.

    Raises:
        GalleryError: not the folder of a gallery, or a part of it is a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = located_absolutely(path)
        self._name = str(self.path)
        try:
            self._self = OpenFolder(self.path)
        except OSError as error:
            raise _no_folder(path, error) from error
        try:
            self._open_parts()
        except (GalleryError, OSError) as error:
            self._check_self()  # what is exchanged and removed meanwhile is not damaged
            if isinstance(error, OSError):
                raise GalleryError(f"{self.path}: cannot be read: {reason(error)}") from error
            raise

    def _open_parts(self) -> None:
        self.catalogue = self._part(CATALOGUE, stat.S_ISREG)
        self._check_alone()
        for name in (ROWS, READERS):
            self._part(name, stat.S_ISDIR)
        self.rows = OpenFolder(ROWS, self.fd)
        self.readers = OpenFolder(READERS, self.fd)

    @property
    def fd(self) -> int:
        """The descriptor of the folder."""
        return self._self.fd

    @property
    def identity(self) -> Identity:
        """Device and inode of the folder."""
        return self._self.identity

    def _holds_shards(self) -> bool:
        try:
            return stat.S_ISREG(os.stat("shards.json", dir_fd=self.fd).st_mode)
        except OSError:
            return False

    def _part(self, name: str, expected: object) -> Identity:
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            what = f"{self.path}: not a gallery (no {name} in it); "
            if self._holds_shards():
                raise GalleryError(
                    f"{what}it holds the shards of one, each a gallery; ask them all with cir-serve or "
                    "ShardedSearcher"
                ) from error
            raise GalleryError(
                f"{what}create one with cir-index or Gallery.create, or restore it from a copy"
            ) from error
        if stat.S_ISLNK(status.st_mode):
            raise GalleryError(
                f"{self.path}: its {name} is a link; the parts of a gallery lie in its own folder, so move "
                "what it points to in its place, or restore the gallery from a copy"
            )
        if not callable(expected) or not expected(status.st_mode):
            raise GalleryError(
                f"{self.path}: its {name} is not what a gallery has there; restore it from a copy"
            )
        return (status.st_dev, status.st_ino)

    def _check_alone(self) -> None:
        """Refuse a catalogue that other galleries have as well, and one that a journal would change.

        Raises:
            GalleryError: it is such a one.
        """
        status = os.stat(CATALOGUE, dir_fd=self.fd, follow_symlinks=False)
        if status.st_nlink > 1:
            raise GalleryError(
                f"{self.path}: its {CATALOGUE} has {status.st_nlink} names, so a copy of hard links (cp -l) "
                "shares it and each would spoil the other; put a copy of the file in its place, and make "
                "copies with cir-gallery backup"
            )
        self.check_journal()

    def check_journal(self) -> None:
        """Refuse a rollback journal. No gallery has one, and SQLite removes the file that it names.

        Raises:
            GalleryError: there is one.
        """
        try:
            os.stat(JOURNAL, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return
        raise GalleryError(
            f"{self.path}: holds a {JOURNAL}, which no gallery writes and which could remove files "
            "elsewhere; remove it, or restore the gallery from a copy"
        )

    def located(self) -> str:
        """A path by which the folder can be reached now, whatever its name has become; as in a URI."""
        return f"/proc/self/fd/{self.fd}" if _HAS_PROC else quote(os.fsencode(self.path))

    def check(self) -> None:
        """Make sure that the folder's name and what lies in it still are what was opened.

        Raises:
            GalleryError: they are not.
        """
        self.check_name()
        self._check_part(ROWS, self.rows.identity)
        self._check_part(READERS, self.readers.identity)

    def check_name(self) -> None:
        """Make sure that the name still leads to the folder and its catalogue; the cheap part of `check`.

        Raises:
            GalleryError: it does not.
        """
        if self.fd < 0:
            raise self.closed()
        self._check_self()
        self._check_part(CATALOGUE, self.catalogue)

    def _check_self(self) -> None:
        try:
            status = os.stat(self._name)  # noqa: PTH116 a query pays for it
        except OSError as error:
            if error.errno == errno.EACCES:  # rights were given up since; nobody can tell
                return
            raise self._changed("its folder was moved or removed") from None
        if (status.st_dev, status.st_ino) != self.identity:
            raise self._changed("its folder was exchanged for another")

    def _check_part(self, name: str, identity: Identity) -> None:
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            raise self._changed(f"its {name} was removed") from None
        if (status.st_dev, status.st_ino) != identity:
            raise self._changed(f"its {name} was exchanged for another")

    def _changed(self, what: str) -> GalleryError:
        if self.fd < 0:  # by another thread, while this one looked
            return self.closed()
        return GalleryError(
            f"{self.path}: is not what it was when this gallery was opened ({what}); open it again"
        )

    def closed(self) -> GalleryError:
        """What is raised once the gallery is closed."""
        return GalleryError(f"{self.path}: this gallery is closed; open it again")

    def check_retired(self) -> None:
        """Make sure that no other galleries took this one's place, in which a change would be lost.

        Raises:
            GalleryError: they did.
        """
        try:
            os.stat(RETIRED, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return
        raise GalleryError(
            f"{self.path}: other shards took its place, so a change would be lost; open the sharded gallery "
            "again (if it is among its shards still, running the command that was killed, or `cir-cluster "
            "rebalance`, ends what was begun)"
        )

    def retire(self, retired: bool) -> None:
        """Refuse every later change, or allow them again; durable.

        Raises:
            OSError: the disk is full or fails.
        """
        if retired:
            open_file(RETIRED, os.O_RDONLY | os.O_CREAT, self.fd).close()
        else:
            with suppress(FileNotFoundError):
                os.unlink(RETIRED, dir_fd=self.fd)
        os.fsync(self.fd)

    def check_outside(self, path: Path, what: str) -> None:
        """Refuse to put something into the folder, where only the gallery itself may lie.

        Raises:
            GalleryError: the path is the folder, or below it.
        """
        place, home = resolved(path), resolved(self.path)
        if place == home:
            raise GalleryError(f"{path}: is the gallery itself; choose another path for {what}")
        if home in place.parents:
            raise GalleryError(f"{path}: lies inside the gallery; choose a path outside for {what}")

    def close(self) -> None:
        """Give the descriptors back."""
        for folder in (self.readers, self.rows, self._self):
            folder.close()


def is_retired(path: Path) -> bool:
    """Whether the gallery in a folder refuses every change, because others took its place."""
    return os.path.lexists(path / RETIRED)


def located_absolutely(path: Path) -> Path:
    """The path from the root.

    Raises:
        GalleryError: it is relative, and the current folder has been removed.
    """
    try:
        return path.absolute()
    except OSError as error:
        raise GalleryError(
            f"{path}: the current folder was removed, so nothing is found by a relative path; pass an "
            "absolute path, or change to another folder"
        ) from error


def resolved(path: Path) -> Path:
    """The path from the root without links; links that lead in a circle stay, and fail when they are opened.

    Raises:
        GalleryError: see `located_absolutely`.
    """
    return Path(os.path.realpath(located_absolutely(path)))


def _no_folder(path: Path, error: OSError) -> GalleryError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        found = "a file" if path.exists() else "nothing"
        return GalleryError(
            f"{path}: found {found}, expected the folder of a gallery; "
            "create one with cir-index or Gallery.create"
        )
    return GalleryError(f"{path}: cannot be read: {reason(error)}")
