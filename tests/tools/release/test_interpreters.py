"""A name on the PATH is a Python only if it starts: pyenv puts programs there for versions not chosen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.release import interpreters


def program(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a folder of programs that are on the PATH."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def starts(path: Path) -> Path:
    return program(path, f'exec "{sys.executable}" "$@"')


def test_one_that_does_not_start_is_passed_over(here: Path) -> None:
    program(here / "bin" / "python3.98", "exit 127")
    assert interpreters.find("python3.98") is None
    real = starts(here / ".pyenv" / "versions" / "3.98.1" / "bin" / "python3.98")
    found = interpreters.find("python3.98")
    assert found is not None and found.program == real
    assert found.version == sys.version_info[:2] and (found.stdlib / "os.py").is_file()


def test_one_without_headers_serves_where_nothing_is_compiled(here: Path) -> None:
    said = r"3 98\n/nowhere\nFalse\n"
    bare = program(here / "bin" / "python3.98", f"printf '{said}'")
    found = interpreters.find("python3.98")
    assert found == (bare, (3, 98), Path("/nowhere"), False)
    assert interpreters.find("python3.98", headers=True) is None


def test_a_path_is_a_name_too(here: Path) -> None:
    found = interpreters.find(str(starts(here / "elsewhere" / "python")))
    assert found is not None and found.program == here / "elsewhere" / "python"
