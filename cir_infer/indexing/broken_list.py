"""The list of images that could not be indexed: what is broken now, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from cir_infer.errors import UsageError, shown
from cir_infer.foreign import read_json
from cir_infer.indexing.items import Broken
from cir_infer.inputs.opening import why
from cir_infer.processes.outputs import check_waits_for_nobody

__all__ = ["BrokenList"]

_FIELDS = {"id", "source", "reason"}
_LONGEST = 1 << 20


class BrokenList:
    """The file in which a run lists what it could not index.

    It shows the state after the last run: where nothing is broken any more, the default file is removed
    and one that was named is empty.

    Args:
        path: of the file.
        named: whether somebody asked for this file.

    Raises:
        UsageError: it was named and cannot be written.
    """

    def __init__(self, path: Path, named: bool) -> None:
        self.path = path
        self._named = named
        if named and (reason := self._refused()):
            raise UsageError(
                f"--broken-list {shown(str(path))}: {reason}; name another file, in a folder that is "
                "there and may be written to"
            )

    @classmethod
    def of(cls, gallery: str | Path, named: str | None) -> BrokenList:
        """That of a gallery: the file that somebody named, or else one beside it.

        Raises:
            UsageError: see above.
        """
        return cls(Path(f"{gallery}.broken.jsonl" if named is None else named), named is not None)

    def _refused(self) -> str | None:
        """Why no list can be written there, as far as it shows before."""
        folder = self.path.parent
        try:
            check_waits_for_nobody(self.path)
        except OSError as error:
            return f"cannot be written ({why(error)})"
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return "cannot be written"
        return None if self._is_ours() else "holds something else than such a list, which would be lost"

    def _is_ours(self) -> bool:
        """Whether nothing is lost with what the file holds: nothing, or the list of a run before."""
        try:
            if not self.path.is_file():
                return True
            with self.path.open("rb") as file:
                line = file.readline(_LONGEST)
            return not line or set(read_json(line)) == _FIELDS
        except (OSError, ValueError, TypeError):
            return False

    def write(self, broken: Iterable[Broken]) -> str | None:
        """Replace what the file holds; returns why it could not be written, None if it was.

        A run never fails for the sake of its list.
        """
        # What is no Unicode becomes an escape, which in JSON means the same.
        lines = "".join(
            json.dumps({"id": entry.id, "source": entry.source, "reason": entry.reason}, ensure_ascii=False)
            + "\n"
            for entry in broken
        )
        try:
            if not lines and not self._named:
                self.path.unlink(missing_ok=True)
            else:
                check_waits_for_nobody(self.path)
                self.path.write_text(lines, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            return why(error)
        return None
