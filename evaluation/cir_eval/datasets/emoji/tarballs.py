"""Reads the pictures out of a package's tarball. Nothing is written under a name that the tarball gives."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from cir_infer.errors import DatasetError, shown

__all__ = ["pictures_of"]

_LARGEST = 1 << 20
_MOST = 20_000
_ALL = 1 << 30
_CODE_POINTS = re.compile(r"[0-9a-f]{2,6}(-[0-9a-f]{2,6}){0,15}")
_VARIATION = "fe0f"


def pictures_of(tarball: Path, folder: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The pictures of one folder of a tarball, in its order.

    Args:
        tarball: a .tgz file.
        folder: within it; what lies elsewhere, links, and names that are no code points are passed over.
        suffix: of the pictures' names.

    Yields:
        The code points in lower case, joined by "-", without variation selectors; the file.

    Raises:
        DatasetError: it is damaged, or holds more or larger files than a package of emoji does.
    """
    files = total = 0
    try:
        with tarfile.open(tarball, "r|gz") as archive:
            for member in archive:
                files, total = files + 1, total + member.size
                if files > _MOST or total > _ALL:
                    raise DatasetError(
                        f"{tarball} holds more than {_MOST} files or {_ALL >> 20} MB; expected emoji alone"
                    )
                place, _, name = member.name.rpartition("/")
                if place != folder or not member.isreg() or not name.endswith(suffix):
                    continue
                id_ = _id_of(name[: -len(suffix)])
                if id_ is None:
                    continue
                if member.size > _LARGEST:
                    raise DatasetError(
                        f"{tarball} holds {shown(name)} of {member.size} bytes; expected small pictures"
                    )
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                yield id_, content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise DatasetError(
            f"{tarball} cannot be read ({type(error).__name__}: {shown(error)}); fetch it again"
        ) from error


def _id_of(name: str) -> str | None:
    name = name.lower()
    if not _CODE_POINTS.fullmatch(name):
        return None
    return "-".join(code for code in name.split("-") if code != _VARIATION) or None
