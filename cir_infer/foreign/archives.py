"""Zip archives of strangers: a directory of bounded size, and members that are stored, apart and whole."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

__all__ = ["check_sums", "checked_members", "opened_archive"]

_MOST_DIRECTORY = 64 << 20
"""Bytes of a directory. Reading it takes some ten times as much."""

_BLOCK = 1 << 20

_END = b"PK\5\6"
_END_BYTES = 22
_END64_LOCATOR = b"PK\6\7"


def opened_archive(path: Path, most_directory: int = _MOST_DIRECTORY) -> zipfile.ZipFile:
    """An archive whose directory is not larger than any that its kind has.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no archive, or its directory is too large.
        zipfile.BadZipFile: it is damaged; zipfile raises others, too.
    """
    with path.open("rb") as file:
        size = _directory_bytes(file)
    if size > most_directory:
        raise ValueError(f"its directory has {size:,} bytes; expected at most {most_directory:,}")
    return zipfile.ZipFile(path)


def checked_members(
    archive: zipfile.ZipFile, file_bytes: int, ignored: Callable[[str], bool] = lambda _: False
) -> dict[str, zipfile.ZipInfo]:
    """The members by name: none twice, none compressed or encrypted, and together not larger than the file.

    Where no member has a checksum, as PyTorch leaves them out when it is told to, none is asked for.

    Args:
        archive: from `opened_archive`.
        file_bytes: the size of its file.
        ignored: which members are never read; they are left out.

    Raises:
        ValueError: a member is not so.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        if info.filename in members:
            raise ValueError(f"it holds {info.filename[:80]!r} twice")
        if ignored(info.filename):
            continue
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(
                f"{info.filename[:80]!r} is compressed or encrypted; expected it stored as it is"
            )
        if info.file_size != info.compress_size:
            raise ValueError(f"{info.filename[:80]!r} has two sizes")
        total += info.file_size
        members[info.filename] = info
    if total > file_bytes:
        raise ValueError(f"its members claim {total:,} bytes of {file_bytes:,}")
    if not any(info.CRC for info in members.values()):
        for info in members.values():
            info.CRC = None  # type: ignore[assignment]  # as zipfile marks those that it does not check
    return members


def check_sums(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Hold every member against its checksum, where it has one.

    Args:
        archive: from `opened_archive`.
        members: from `checked_members`.

    Raises:
        ValueError: one is damaged.
        zipfile.BadZipFile: the archive is.
    """
    for name, info in members.items():
        if info.CRC is None:
            continue
        try:
            with archive.open(info) as file:
                while file.read(_BLOCK):
                    pass
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"its {name[:80]!r} is damaged") from error


def _directory_bytes(file: IO[bytes]) -> int:
    """The size of the directory, from the end of the archive, as zipfile finds it."""
    length = file.seek(0, 2)
    start = max(0, length - _END_BYTES - (1 << 16))
    file.seek(start)
    tail = file.read()
    at = len(tail) - _END_BYTES
    if at < 0 or tail[at : at + 4] != _END or tail[-2:] != b"\0\0":
        at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        raise ValueError("it is no zip archive, or was cut short")
    (size,) = struct.unpack_from("<I", tail, at + 12)
    locator = at - 20
    if locator >= 0 and tail[locator : locator + 4] == _END64_LOCATOR:
        (place,) = struct.unpack_from("<Q", tail, locator + 8)
        # zipfile takes the record right before its locator, wherever the locator says it is.
        for candidate in (start + locator - 56, place):
            if 0 <= candidate <= length - 56:
                file.seek(candidate)
                record = file.read(56)
                if record[:4] == b"PK\6\6":
                    size = max(size if size != 0xFFFFFFFF else 0, struct.unpack_from("<Q", record, 40)[0])
    return int(size)
