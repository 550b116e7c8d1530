"""tools/gpu_check.py: what a run that is cut short leaves behind, and that it leaves nothing running."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Killed and not yet collected by its new parent is dead, too.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_step_that_takes_too_long_ends_with_all_its_children(tool: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import subprocess, sys; print('begun', flush=True); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('child', child.pid, flush=True); child.wait()"
    )
    step = tool.run("hangs", [sys.executable, "-c", code], 5, log)
    assert step["passed"] is False and step["exit_code"] == 124
    said = log.read_text()
    assert "begun" in said and "stopped after 5 s" in said
    child = int(said.partition("child ")[2].split()[0])
    for _ in range(100):
        if not lives(child):
            break
        time.sleep(0.1)
    assert not lives(child)


def test_a_step_tells_how_it_ended(tool: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tool.run("good", [sys.executable, "-c", "print('fine')"], 60, log)["passed"] is True
    bad = tool.run("bad", [sys.executable, "-c", "raise SystemExit(3)"], 60, log)
    assert (bad["passed"], bad["exit_code"]) == (False, 3)
    assert log.read_text().count("== ") == 2
    assert tool.skipped("no such tool") == {"passed": None, "skipped": "no such tool"}


def test_what_is_known_is_written_whole(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for known in ({"build": 1}, {"build": 1, "conformance": 2}):
        tool.write(known, path)
        assert json.loads(path.read_text()) == known
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
