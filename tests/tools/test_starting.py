"""A tool that is started by its path finds what it imports of other rooms, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
PROGRAMS = sorted(
    path
    for path in TOOLS.rglob("*.py")
    if "from tools." in (text := path.read_text("utf-8")) and "__main__" in text
)


def test_there_is_something_to_start() -> None:
    assert len(PROGRAMS) > 5


@pytest.mark.parametrize("tool", PROGRAMS, ids=lambda path: str(path.relative_to(TOOLS)))
def test_a_tool_finds_what_it_imports(tool: Path, tmp_path: Path) -> None:
    # An installation may have put the repository on the path: a machine that it was carried to has none.
    program = (
        "import runpy, sys; tool, root = sys.argv[1:]; sys.path[:] = [p for p in sys.path if p != root]; "
        "runpy.run_path(tool, run_name='imported')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program, tool, TOOLS.parent],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
