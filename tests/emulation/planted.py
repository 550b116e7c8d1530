"""Kernels with planted mistakes, one of which shows: all are compiled at once, which takes the longest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.emulation.emulated import BUILD, machine

FAULT = r"a race|nothing wrote|outside of memory|as if it could not change|no fence, barrier and atomic"
"""What the checked machine says of a mistake."""

Mistake = str | tuple[str, int] | None
"""One that has a name, the barrier of a file's line that is missing, or none."""

_BARRIER = re.compile(r"^\s*device::barrier\(\);")
_CHOICE = """#include <device.cuh>
static int chosen = 0;
CIR_UNWATCHED static bool planted(int mistake) { return mistake == chosen; }
extern "C" void choose_mistake(int mistake) { chosen = mistake; }
"""


class Planted:
    """The kernels of a folder with mistakes: those that are given, and each barrier that is missing.

    Args:
        kernels: the folder.
        edits: for each mistake the file, what is right, and what is there instead, wrong where `PLANTED` is
            true; neither has more lines. They follow each other: an edit may be of what an earlier one made.
    """

    def __init__(self, kernels: Path, edits: Mapping[str, tuple[str, str, str]]) -> None:
        self._kernels = kernels
        self._edits = edits
        self.barriers = [
            (path.name, number)
            for path in sorted(kernels.glob("*.cuh"))
            for number, line in enumerate(path.read_text().split("\n"))
            if _BARRIER.match(line)
        ]
        self.mistakes: list[Mistake] = [*edits, *self.barriers]

    def _number(self, mistake: Mistake) -> int:
        return 0 if mistake is None else 1 + self.mistakes.index(mistake)

    def written(self) -> Path:
        """A folder with these kernels, where they are found compiled the next time."""
        texts = {path.name: path.read_text() for path in self._kernels.glob("*.cu*")}
        for mistake, (name, right, wrong) in self._edits.items():
            assert texts[name].count(right) == 1, f"the kernels have changed; plant {mistake} anew"
            wrong = wrong.replace("PLANTED", f"planted({self._number(mistake)})")
            texts[name] = texts[name].replace(right, wrong)
        for name, number in self.barriers:
            lines = texts[name].split("\n")
            shown = f"if (!planted({self._number((name, number))})) device::barrier();"
            lines[number] = lines[number].replace("device::barrier();", shown)
            texts[name] = "\n".join(lines)
        unit = next(self._kernels.glob("*.cu")).name
        texts[unit] = _CHOICE + texts[unit]
        digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
        folder = BUILD / f"spoilt-{digest}"
        if not folder.exists():
            half = folder.with_suffix(f".{os.getpid()}")
            half.mkdir(parents=True)
            for name, text in texts.items():
                (half / name).write_text(text)
            try:
                half.rename(folder)
            except OSError:  # somebody else was sooner
                shutil.rmtree(half)
        return folder

    @contextlib.contextmanager
    def showing(self, spoilt: Path, mistake: Mistake) -> Iterator[None]:
        """Within it the kernels that `written` gave have one mistake."""
        choose = machine(True, spoilt).choose_mistake
        choose(self._number(mistake))
        try:
            yield
        finally:
            choose(0)
