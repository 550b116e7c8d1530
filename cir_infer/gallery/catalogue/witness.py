"""The newest commit, told outside the catalogue.

SQLite takes a damaged frame of its log for the end of the log, so one flipped bit there would take back the
commits behind it in silence. The file `committed` says which generation was acknowledged last; a catalogue
that is behind it has lost commits. It is written after the commit and not synced: after a power failure it
may be old, torn or missing, and is then no evidence of anything.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress

from cir_infer.gallery.catalogue.checksums import checksum
from cir_infer.gallery.disk.files import is_regular, open_file, remove
from cir_infer.gallery.disk.folder import Folder

__all__ = ["NAME", "Witness"]

NAME = "committed"
_LENGTH = 128


class Witness:
    """The file `committed` of a gallery.

    Args:
        folder: of the gallery.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._file: io.FileIO | None = None

    def generation(self, uuid: str | None) -> int:
        """The newest generation of this gallery that was acknowledged, 0 where nothing says."""
        if not is_regular(NAME, self._folder.fd):
            return 0
        try:
            with open_file(NAME, os.O_RDONLY, self._folder.fd) as file:
                words = os.pread(file.fileno(), _LENGTH, 0).decode("ascii", "replace").split()
        except OSError:
            return 0
        if len(words) != 3 or words[0] != uuid or not words[1].isdecimal() or len(words[1]) > 20:
            return 0
        generation = int(words[1])
        return generation if words[2] == _sealed(words[0], generation) else 0

    def tell(self, uuid: str, generation: int) -> None:
        """Say that a generation is durable. Failing to is no error: nobody misses it but `generation`."""
        line = f"{uuid} {generation} {_sealed(uuid, generation)}".ljust(_LENGTH - 1) + "\n"
        with suppress(OSError):
            file = self._file
            if file is not None and not file.closed and os.fstat(file.fileno()).st_nlink != 1:
                file.close()  # removed, or a copy of hard links has it, too, and other commits
            if file is None or file.closed:
                if is_regular(NAME, self._folder.fd) and os.stat(NAME, dir_fd=self._folder.fd).st_nlink > 1:
                    remove(NAME, self._folder.fd)
                file = self._file = open_file(NAME, os.O_RDWR | os.O_CREAT, self._folder.fd)
            os.pwrite(file.fileno(), line.encode(), 0)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._file is not None:
            self._file.close()


def _sealed(uuid: str, generation: int) -> str:
    return f"{checksum('committed', (uuid, generation)) & (1 << 64) - 1:016x}"
