"""How the members of a bundle are laid into its file, and where a stored member lies in it."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cir_infer.bundle.manifest import Member
from cir_infer.bundle.model import ALIGNMENT
from cir_infer.errors import BundleError

__all__ = ["Content", "FilePart", "chunks_of", "data_begin", "digest", "write_archive"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""One date for all members, so that equal content gives an equal file."""

_CHUNK = 4 << 20
_HEADER = 30
_SIGNATURE = b"PK\3\4"
_PADDING = 0xD935
"""The kind of extra field with which Android's zipalign aligns members."""

_ZIP64 = 20
"""Bytes of the extra field that Python's zipfile puts before ours where a member may be large."""


@dataclass(frozen=True)
class FilePart:
    """Content that lies in a file and is too large to be read at once.

    Attributes:
        path: the file.
        begin: first byte.
        length: bytes.
        sha256: what they must be, hex; None where it is not known yet.
    """

    path: Path
    begin: int
    length: int
    sha256: str | None = None

    @staticmethod
    def of(path: Path) -> FilePart:
        """A whole file."""
        return FilePart(path, 0, path.stat().st_size)

    def chunks(self) -> Iterator[bytes]:
        """The content.

        Raises:
            BundleError: the file ends too early.
            OSError: it cannot be read.
        """
        left = self.length
        with self.path.open("rb") as file:
            file.seek(self.begin)
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise BundleError(f"{self.path} was cut short while it was read")
                left -= len(chunk)
                yield chunk

    def digest(self) -> Member:
        """Size and sha256, as found."""
        found = hashlib.sha256()
        for chunk in self.chunks():
            found.update(chunk)
        return Member(self.length, found.hexdigest())


Content = bytes | FilePart


def digest(content: Content) -> Member:
    """Size and sha256 of a member.

    Raises:
        BundleError: a part of a file is not what it should be.
    """
    if isinstance(content, bytes):
        return Member(len(content), hashlib.sha256(content).hexdigest())
    found = content.digest()
    if content.sha256 not in (None, found.sha256):
        raise BundleError(
            f"{content.path} was altered or damaged (a part of it does not have the sha256 that its manifest "
            "gives); copy it again or export the model again"
        )
    return found


def chunks_of(members: Mapping[str, Content]) -> int:
    """How often `write_archive` calls `written`."""
    return sum(
        1 if isinstance(content, bytes) else -(-content.length // _CHUNK) for content in members.values()
    )


def write_archive(
    file: IO[bytes], members: Mapping[str, Content], written: Callable[[], object] = lambda: None
) -> None:
    """Write a zip archive of stored members; parts of files begin at a multiple of `ALIGNMENT`.

    Args:
        file: where to.
        members: content by name.
        written: called for each member, and for each 4 MiB of a part of a file.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            if isinstance(content, bytes):
                archive.writestr(info, content)
                written()
                continue
            info.file_size = content.length
            fixed = file.tell() + _HEADER + len(name.encode()) + _ZIP64 + 4
            padding = -fixed % ALIGNMENT
            info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
            with archive.open(info, "w", force_zip64=True) as member:
                for chunk in content.chunks():
                    member.write(chunk)
                    written()


def data_begin(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the content of a stored member begins.

    Raises:
        ValueError: the file does not say.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_HEADER)
    if len(header) < _HEADER or header[:4] != _SIGNATURE:
        raise ValueError("it does not lie where the archive's directory says")
    name, extra = struct.unpack_from("<HH", header, 26)
    return info.header_offset + _HEADER + int(name) + int(extra)
