"""The pictures of items that a service keeps, each in a file of its own, named by the item that has it.

A change writes files before its commit and removes others behind it, so a process that is killed in between
would leave some that no item names. Each change therefore keeps a note of them, locked for as long as it
lives; whoever writes next finds the notes that nobody holds, and removes what they name and no item does.
Files that no note names stay: the folder may be somebody's photos, or hold the pictures of other galleries.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue.catalogue import OutcomeUnknownError
from cir_infer.gallery.disk.files import open_file
from cir_infer.inputs.opening import why
from cir_infer.processes.folders import sync_folder
from cir_infer.processes.locked_files import is_claimed, locked_file

__all__ = ["Note", "Pictures", "is_there"]

_OWN = re.compile("([0-9a-f]{2})[0-9a-f]{22}")
"""The name of a picture that a service keeps, after the folder that it lies in."""
_NOTE = re.compile(r"\.changing\.[0-9a-f]{24}")


class Note:
    """What a change may leave behind.

    Args:
        file: new, open and locked.
        gallery: the identity of the gallery that changes.

    Attributes:
        needed: whether it names files that nobody needs and that could not be removed.
    """

    def __init__(self, file: io.FileIO, gallery: str | None) -> None:
        self._file = file
        self.needed = False
        self._lines: list[Any] = [{"gallery": gallery}]

    def add(self, pictures: Iterable[tuple[str, Path]]) -> None:
        """Note files, each with the item that has it or is to have it; on the disk when this returns.

        Raises:
            GalleryError: the disk does not take it.
        """
        self._lines += [[item, path.name] for item, path in pictures]
        data = b"".join(json.dumps(line).encode() + b"\n" for line in self._lines)
        self._lines = []
        try:
            while data:
                data = data[os.write(self._file.fileno(), data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise GalleryError(f"the pictures of a change cannot be noted ({why(error)})") from error

    def forget(self, pictures: Iterable[Path]) -> None:
        """Remove noted files that no item names. What cannot be removed now is left for a later change."""
        for path in pictures:
            self.needed |= not _remove(path)


class Pictures:
    """The folder of the pictures that a service keeps.

    Args:
        folder: made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    @contextmanager
    def changing(self, gallery: Gallery) -> Iterator[Note]:
        """A note for the time of a change; it stays where somebody has to look at its files again.

        Raises:
            GalleryError: it cannot be written.
        """
        path, file = self._begin()
        with closing(file):
            note = Note(file, gallery.uuid)
            try:
                yield note
            except BaseException as error:
                note.needed |= is_there(error)
                raise
            finally:
                if not note.needed:
                    _remove(path)

    def _begin(self) -> tuple[Path, io.FileIO]:
        try:
            while True:
                self._folder.mkdir(parents=True, exist_ok=True)
                path = self._folder / f".changing.{secrets.token_hex(12)}"
                file = locked_file(open_file, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                if is_claimed(file.fileno(), path):
                    return path, file
                file.close()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> GalleryError:
        return GalleryError(f"{self._folder}: a picture cannot be kept here ({why(error)})")

    def place(self) -> Path:
        """Where the next picture is to lie."""
        name = secrets.token_hex(12)
        return self._folder / name[:2] / name

    def keep(self, path: Path, data: bytes) -> None:
        """An image's bytes in a file of their own, on the disk before the commit that names it.

        Args:
            path: of `place`, noted.
            data: the bytes.

        Raises:
            GalleryError: the disk does not take it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for folder in (path.parent, self._folder):
                sync_folder(folder)
        except OSError as error:
            raise self._refused(error) from error

    def own(self, source: str | None) -> Path | None:
        """The file of an item's picture, where it is one of these; anything else stays whatever happens."""
        if source is None:
            return None
        path = Path(source)
        own = _OWN.fullmatch(path.name)
        return path if own and path.parent == self._folder / own[1] else None

    def sweep(self, gallery: Gallery) -> None:
        """Remove what killed changes of a gallery have left. The caller is its one writer.

        What cannot be read or removed now is left for the next time.
        """
        identity = gallery.uuid
        if identity is None:
            return
        with suppress(OSError):
            notes = [entry.path for entry in os.scandir(self._folder) if _NOTE.fullmatch(entry.name)]
            for path in notes:
                with suppress(OSError):
                    self._sweep(Path(path), gallery, identity)

    def _sweep(self, path: Path, gallery: Gallery, identity: str) -> None:
        with closing(locked_file(open_file, path, os.O_RDWR)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody is at work on it any more
            if not os.fstat(file.fileno()).st_nlink:
                return
            first, *lines = list(_read(file.readall())) or [{}]
            if lines and (not isinstance(first, dict) or first.get("gallery") != identity):
                return  # of another gallery, which may be back one day
            noted = [line for line in lines if _is_noted(line)]
            held = gallery.held(list({item for item, _ in noted}))
            left = False
            for item, name in noted:
                known = held.get(item)
                if known is None or Path(known.source or "").name != name:
                    left |= not _remove(self._folder / name[:2] / name)
            if not left:
                _remove(path)


def is_there(error: BaseException) -> bool:
    """Whether the change that failed with this is on the disk, or nobody knows."""
    return isinstance(error, OutcomeUnknownError) or bool(getattr(error, "durable", False))


def _read(data: bytes) -> Iterator[Any]:
    """What the lines of a note say, up to one that was torn."""
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            return


def _is_noted(line: Any) -> bool:
    return (
        isinstance(line, list)
        and len(line) == 2
        and all(isinstance(value, str) for value in line)
        and _OWN.fullmatch(line[1]) is not None
    )


def _remove(path: Path) -> bool:
    """Whether it is gone."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return False
    return True
