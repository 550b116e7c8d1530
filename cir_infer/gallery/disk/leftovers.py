"""Row files that a crash left behind: found by what proves that they are this gallery's own, then removed.

Nothing else in the folder is touched, whatever it is called.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from contextlib import suppress

from cir_infer.gallery.disk import files
from cir_infer.processes.folders import OpenFolder

__all__ = ["about", "sweep"]

_NAME = re.compile(r"(\d{10,18})\.safetensors")
_LEAST = 40
"""Bytes of a torn header that are enough to tell it by."""


def about(identity: str | None, number: int) -> dict[str, str] | None:
    """What the header of a row file says of its gallery; None for a gallery that has no identity."""
    return None if identity is None else {"gallery": identity, "segment": str(number)}


def sweep(
    rows: OpenFolder,
    known: Collection[int],
    next_segment: int,
    identities: Collection[str],
    dimensions: Collection[int],
) -> None:
    """Remove row files that the gallery has forgotten or never came to know.

    Args:
        rows: the folder.
        known: the numbers of the segments that the catalogue names.
        next_segment: every number that was ever committed is smaller. A file with a larger number may
            belong to a commit that is under way.
        identities: of the gallery, and of the one whose backup it is.
        dimensions: of its encodings, where row files may have been written that name no gallery.

    Raises:
        OSError: the folder cannot be read.
    """
    for name in rows.names():
        match = _NAME.fullmatch(name)
        if match is None or name != f"{int(match[1]):010d}.safetensors":
            continue
        number = int(match[1])
        if number >= next_segment or number in known:
            continue
        if _is_ours(name, number, rows, identities, dimensions):
            files.remove(name, rows.fd)


def _is_ours(
    name: str, number: int, rows: OpenFolder, identities: Collection[str], dimensions: Collection[int]
) -> bool:
    if not files.is_regular(name, rows.fd):
        return False
    try:
        with files.open_file(name, os.O_RDONLY, rows.fd) as file:
            head = os.pread(file.fileno(), 1 << 12, 0)
    except OSError:
        return False
    if not head:
        return True  # nothing is lost with it
    for identity in identities:
        # The header begins with it, so that the beginning of a torn file still proves it.
        own = {"__metadata__": about(identity, number)}
        begin = json.dumps(own, separators=(",", ":")).encode()[:-1]
        text = head[8 : 8 + len(begin)]
        if len(text) >= _LEAST and begin.startswith(text):
            return True
    return _is_of_old_form(head, dimensions)


def _is_of_old_form(head: bytes, dimensions: Collection[int]) -> bool:
    """Whether it is a row file as galleries without an identity have it."""
    length = int.from_bytes(head[:8], "little")
    with suppress(ValueError, RecursionError, KeyError, TypeError, IndexError):
        header = json.loads(head[8 : 8 + length])
        names = {key for key in header if not key.startswith("_pad")}
        return {"rows"} <= names <= {"rows", "scales", "keys"} and header["rows"]["shape"][1] in dimensions
    return False
