"""Where the bytes of an image are: a file, a stretch of one (a member of a tar), or a cell of a parquet file.

A file is one of this machine, by its path, or an object of a store, by its address (`remote`).
A location has a text form, the `source` of a gallery item, and can be read back from it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from cir_infer.errors import CirError, ImageError, shown
from cir_infer.inputs.opening import opened, why
from cir_infer.inputs.remote import Ahead, asked_ahead, is_address, read_remote, remote_status, told

__all__ = [
    "MAX_IMAGE_BYTES",
    "Location",
    "absolute",
    "are_gone",
    "is_gone",
    "link_away",
    "read_each",
    "same_file",
]

MAX_IMAGE_BYTES = 1 << 29
"""The largest image file that is read, 512 MiB."""

_LONG = 5000
"""Characters of a place that is none, of which no more is told than of any text."""
_CELL = re.compile(r"(.+)#([^#\[\]]+)\[(\d{1,18})\]", re.DOTALL)
_STRETCH = re.compile(r"(.+)#(\d{1,18})\+(\d{1,18})", re.DOTALL)


@dataclass(frozen=True)
class Location:
    """Where the bytes of an image are.

    As text a whole file is its path, a member of a tar file `shard.tar#offset+size`, which can be read
    back without the tar's index, and a cell of a parquet file `table.parquet#column[row]`.

    Attributes:
        path: of the file, or its address.
        offset: where they begin, or with a column the row, from 0.
        size: how many there are, None for the whole file.
        column: of a parquet file whose cells hold images, None for any other file.
    """

    path: str
    offset: int = 0
    size: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        if self.column is not None:
            return f"{self.path}#{self.column}[{self.offset}]"
        return self.path if self.size is None else f"{self.path}#{self.offset}+{self.size}"

    @staticmethod
    def parse(text: str) -> Location:
        """The inverse of `str`; a file that bears such a name is itself."""
        cell, stretch = _CELL.fullmatch(text), _STRETCH.fullmatch(text)
        if (cell or stretch) and not _is_there(text):
            if stretch:
                return Location(stretch[1], int(stretch[2]), int(stretch[3]))
            if cell and cell[1].lower().endswith((".parquet", ".pq")):
                return Location(cell[1], int(cell[3]), None, cell[2])
        return Location(text)

    @property
    def folder(self) -> str:
        """That of the file."""
        return os.path.dirname(self.path)  # noqa: PTH120

    @property
    def whole(self) -> bool:
        """Whether this is all of a file."""
        return self.size is None and self.column is None

    @property
    def _told(self) -> str:
        text = str(self) if told(self.path) == self.path else told(self.path)
        return text if len(text) < _LONG else shown(text)

    @property
    def remote(self) -> bool:
        """Whether the file is an object of a store."""
        return is_address(self.path)

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ImageError: the file is missing, not a regular file, too large or cut short.
        """
        if self.column is not None:
            from cir_infer.inputs.cells import read_cell

            found = read_cell(self.path, self.column, self.offset)
            return found if isinstance(found, bytes) else Location(found).read()
        return self._read(self._bytes)

    def _read(self, take: Callable[[], bytes]) -> bytes:
        try:
            data = take()
        except (OSError, ValueError, OverflowError) as error:
            raise ImageError(f"{self._told}: cannot be read ({why(error)})") from error
        if self.size is not None and len(data) != self.size:
            raise ImageError(f"{self._told}: the file ends before the image does; the archive was cut short")
        return data

    def _begun(self, ahead: Ahead) -> Callable[[], bytes] | None:
        if not self.remote or self.column is not None:
            return None
        return ahead.read(self.path, self.offset, self.size, MAX_IMAGE_BYTES)

    def _bytes(self) -> bytes:
        if self.remote:
            return read_remote(self.path, self.offset, self.size, MAX_IMAGE_BYTES)
        with opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size if self.size is None else self.size
            if size > MAX_IMAGE_BYTES:
                raise ImageError(
                    f"{self._told}: {size:,} bytes; images of at most {MAX_IMAGE_BYTES:,} are read"
                )
            file.seek(self.offset)
            return file.read(size)


def read_each(locations: Iterable[Location]) -> Iterator[bytes | CirError]:
    """The bytes of each, in their order, or why `Location.read` would raise.

    Stores are asked for what comes next before what comes first has been used, so that their latency is
    waited for once and not for each.
    """
    with Ahead() as ahead:
        for location, take in asked_ahead(locations, lambda one: one._begun(ahead)):
            try:
                data: bytes | CirError = location._read(take) if take else location.read()
            except CirError as error:
                data = error
            del take  # it has the bytes
            yield data


def absolute(path: str | os.PathLike[str]) -> str:
    """A path from the root, with the links of its folder resolved: one spelling for one place.

    The last part stays as it is: an entry that is a link is known by its own name.
    """
    text = os.path.abspath(path)  # noqa: PTH100
    folder, name = os.path.split(text)
    with suppress(OSError, ValueError):
        folder = os.path.realpath(folder)
    return os.path.join(folder, name) if name else folder  # noqa: PTH118


def same_file(one: Location, other: Location) -> bool:
    """Whether two locations are in one file, however each is spelled."""
    if one.path == other.path or one.remote or other.remote:
        return one.path == other.path
    try:
        return os.path.samefile(one.path, other.path)  # noqa: PTH121
    except (OSError, ValueError):
        return False


def link_away(path: str) -> bool:
    """Whether a path is not there because a link on its way leads nowhere (a drive that is not mounted)."""
    here = path
    while True:
        try:
            return stat.S_ISLNK(os.lstat(here).st_mode) and not _exists(here)
        except (FileNotFoundError, NotADirectoryError):
            folder = os.path.dirname(here)  # noqa: PTH120
            if folder == here:
                return False
            here = folder
        except (OSError, ValueError):
            return False


def is_gone(path: str) -> bool:
    """Whether a path was removed, as far as can be seen.

    What cannot be examined, and what is behind a link that leads nowhere, is not gone.
    """
    if is_address(path):
        return _said_to_be_gone(lambda: remote_status(path))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return not link_away(path)
    except (OSError, ValueError):
        return False
    return False


def are_gone(paths: Iterable[str]) -> Iterator[bool]:
    """Whether each of some paths was removed, see `is_gone`; of addresses several are asked about at once."""
    with Ahead() as ahead:
        for path, answer in asked_ahead(paths, lambda path: ahead.status(path) if is_address(path) else None):
            yield is_gone(path) if answer is None else _said_to_be_gone(answer)


def _said_to_be_gone(answer: Callable[[], object]) -> bool:
    try:
        answer()
    except FileNotFoundError:
        return True
    except (OSError, CirError):
        return False
    return False


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False
