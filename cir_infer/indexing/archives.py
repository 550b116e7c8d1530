"""The members of a tar file, also of a damaged one: a header that cannot be read is told, the rest is read.

Python's `tarfile` takes a header that makes no sense for the end of the archive, without a word.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from cir_infer.errors import DatasetError, lack, shown
from cir_infer.indexing.items import Broken
from cir_infer.inputs.opening import opened, size_of, why

__all__ = ["archive_members", "opened_archive"]

_BLOCK = 512
_RECORD = 20 * _BLOCK
_MAGIC_AT = 257
_CHUNK = 1 << 20
_FARTHEST = 1 << 30
"""Bytes behind a damaged header in which the next one is looked for."""

_NO_HEADER = "no header of a member"

_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError)


def archive_members(path: str) -> Iterator[tarfile.TarInfo | Broken]:
    """All members in order; a Broken for each place where they cannot be made out.

    Raises:
        DatasetError: not an uncompressed tar file, or it is cut short (after the members before).
    """
    with opened_archive(path) as file:
        try:
            archive = _begun(file)
            if archive.begins_damaged:
                yield _damage(path, 0, _NO_HEADER)
            end = size_of(file)
            while True:
                # Opening has read the first header already.
                at = archive.offset if archive.firstmember is None else 0
                try:
                    member = archive.next()
                    reason = None if member is None or archive.offset > at else "a size below zero"
                except _DAMAGE as error:
                    if at > end:
                        raise
                    member, reason = None, shown(error)
                # The archive remembers every member; a shard may have millions.
                archive.members = []
                if member is not None and reason is None:
                    yield member
                    continue
                if reason is None:
                    file.seek(at)
                    block = file.read(_BLOCK)
                    if len(block) < _BLOCK:
                        raise tarfile.ReadError("there is no end mark")
                    # Zeros end an archive, and others may follow; behind a lost header is its member.
                    lost = block.strip(b"\0") or not _is_zero(file, at + _BLOCK, at + 2 * _BLOCK)
                    reason = _NO_HEADER if lost else None
                    if reason is None and end - at <= _RECORD:
                        return
                found = _next_header(file, at + _BLOCK, end)
                if found is not None and reason is None and not _is_zero(file, at + _BLOCK, found):
                    reason = _NO_HEADER
                if reason is not None:
                    yield _damage(path, at, reason)
                if found is None:
                    return
                archive.offset = found
        except _DAMAGE as error:
            raise _refusal(path, error) from error


@contextmanager
def opened_archive(path: str) -> Iterator[BinaryIO]:
    """The file of an archive, open.

    Raises:
        DatasetError: it cannot be opened, or is no regular file.
    """
    try:
        file = opened(path)
    except (OSError, ValueError) as error:  # which says nothing of what is in it
        raise DatasetError(f"{path}: cannot be read ({lack(error) or why(error)})") from error
    with file:
        yield file


def _refusal(path: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: not an uncompressed tar file, or cut short ({shown(error)}); expected a plain .tar shard"
    )


def _begun(file: BinaryIO) -> Any:
    # "r:" reads plain tar only: a compressed one could be a bomb, and has no offsets.
    try:
        archive: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except tarfile.ReadError:
        if _next_header(file, _BLOCK, size_of(file)) is None:
            raise
        file.seek(0)
        archive = tarfile.open(fileobj=file, mode="r:", ignore_zeros=True)  # noqa: SIM115
        archive.ignore_zeros, archive.begins_damaged = False, True
    else:
        archive.begins_damaged = False
    return archive


def _damage(path: str, at: int, reason: str) -> Broken:
    place = f"{path}#{at}"
    return Broken(place, place, f"{path}: is damaged at byte {at:,} ({reason})", f"0-0-{at}")


def _next_header(file: BinaryIO, start: int, end: int) -> int | None:
    """Where the next block is that is the header of a member, None if there is none."""
    for at in range(start, min(end, start + _FARTHEST), _CHUNK):
        file.seek(at)
        chunk = file.read(_CHUNK)
        mark = chunk.find(b"ustar")
        while mark >= 0:
            if mark % _BLOCK == _MAGIC_AT and _is_header(chunk[mark - _MAGIC_AT :][:_BLOCK]):
                return at + mark - _MAGIC_AT
            mark = chunk.find(b"ustar", mark + 1)
    return None


def _is_zero(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether there is nothing but zeros from one place to another, or to the end."""
    file.seek(start)
    return not any(file.read(min(_CHUNK, stop - at)).strip(b"\0") for at in range(start, stop, _CHUNK))


def _is_header(block: bytes) -> bool:
    try:
        return tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape").size >= 0
    except _DAMAGE:
        return False
