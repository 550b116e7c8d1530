"""The Python 3.10 for aarch64 that a release check puts together; the emulator itself is not needed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.release import emulated_310


def test_what_it_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected an unpacked Debian for arm64"):
        emulated_310.assemble(tmp_path, tmp_path / "out", sys.executable)
    (tmp_path / "lib").mkdir()
    (tmp_path / emulated_310.LOADER).touch()
    if sys.version_info[:2] != (3, 10):
        with pytest.raises(SystemExit, match=r"expected 3\.10"):
            emulated_310.assemble(tmp_path, tmp_path / "out", sys.executable)
    with pytest.raises(SystemExit, match=r"no python3\.99 here starts"):
        emulated_310.assemble(tmp_path, tmp_path / "out", "python3.99")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["code", "file"])
def test_an_interpreter_of_frozen_programs_becomes_an_ordinary_one(how: str, tmp_path: Path) -> None:
    (tmp_path / "__startup__.py").write_text(emulated_310.STARTUP, "utf-8")
    program = "import sys\nprint(__name__, sys.argv[1:], sys.path)"
    (tmp_path / "program.py").write_text(program, "utf-8")
    asked = ["-c", program] if how == "code" else [str(tmp_path / "program.py")]
    started = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = 'python3.10'; sys.frozen = True; "
        "import __startup__; __startup__.init(); __startup__.run(); assert not hasattr(sys, 'frozen')"
    )
    done = subprocess.run(
        [sys.executable, "-c", started, str(tmp_path), "-s", *asked, "a", "-c"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": "/first"},
    )
    expected = ["/first", str(tmp_path), str(tmp_path / "lib-dynload")]
    assert done.stdout.strip() == f"__main__ ['a', '-c'] {expected}"
