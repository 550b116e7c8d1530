"""What the demonstrations say, beside the commands that they run."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from tools.demos.scenes import tell_found


def test_the_end_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    bundle = Path("demo", "artemis.cir")
    tell_found([True, False], "5,000 scenes", [Path("demo/sheets/a.png")], time.perf_counter(), bundle)
    said = capsys.readouterr().out.splitlines()
    assert "1 of 2 targets" in said[1] and "  demo/sheets/a.png" in said
    first, second = said[-1].split("&&")
    assert shlex.split(first) == [".", os.path.join(".venv", "bin", "activate")]  # noqa: PTH118
    assert shlex.split(second) == ["cir-serve", str(bundle)]
