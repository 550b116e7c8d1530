"""The newest commit, told outside the catalogue.

SQLite takes a damaged frame of its log for the end of the log, so one flipped bit there would take back the
commits behind it in silence. The file `committed` says which generation was acknowledged last; a catalogue
that is behind it has lost commits. It is written after the commit and not synced: after a power failure it
may be old, torn or missing, and is then no evidence of anything.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cir_infer.gallery.checksums import checksum

__all__ = ["NAME", "Witness"]

NAME = "committed"
_LENGTH = 128


class Witness:
    """The file `committed` of a gallery.

    Args:
        folder: of the gallery.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._fd = -1

    def generation(self, uuid: str | None) -> int:
        """The newest generation of this gallery that was acknowledged, 0 where nothing says."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return 0
        try:
            words = os.pread(fd, _LENGTH, 0).decode("ascii", "replace").split()
        except OSError:
            return 0
        finally:
            os.close(fd)
        if len(words) != 3 or words[0] != uuid or not words[1].isdecimal() or len(words[1]) > 20:
            return 0
        generation = int(words[1])
        return generation if words[2] == _sealed(words[0], generation) else 0

    def tell(self, uuid: str, generation: int) -> None:
        """Say that a generation is durable. Failing to is no error: nobody misses it but `generation`."""
        line = f"{uuid} {generation} {_sealed(uuid, generation)}".ljust(_LENGTH - 1) + "\n"
        with suppress(OSError):
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._fd = os.open(self._path, flags, 0o644)
            os.pwrite(self._fd, line.encode(), 0)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _sealed(uuid: str, generation: int) -> str:
    return f"{checksum('committed', (uuid, generation)) & (1 << 64) - 1:016x}"
