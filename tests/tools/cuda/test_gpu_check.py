"""tools/cuda/gpu_check.py: what a run that is cut short leaves behind, and that it leaves nothing running."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "cuda" / "gpu_check.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


class Clock:
    """Time as the tool sees it: what a step may take passes as soon as the step is where a test wants it."""

    def __init__(self, tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        monkeypatch.setattr(tool, "time", self)
        monkeypatch.setattr(tool, "_LOOK_EVERY", 0.05)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def passes(self, seconds: float, there: Callable[[], bool]) -> Callable[[], None]:
        """For `look`: so many seconds are over once that is true."""

        def look() -> None:
            nonlocal seconds
            if there():
                self._ahead, seconds = self._ahead + seconds, 0.0

        return look


@pytest.fixture
def clock(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tool, monkeypatch)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Killed and not yet collected by its new parent is dead, too.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_step_that_takes_too_long_ends_with_all_its_children(
    tool: ModuleType, clock: Clock, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    code = (
        "import subprocess, sys; print('begun', flush=True); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('child', child.pid, flush=True); child.wait()"
    )
    look = clock.passes(500, lambda: "child " in log.read_text() and log.read_text().endswith("\n"))
    step = tool.run("hangs", [sys.executable, "-c", code], 500, log, look)
    assert step["passed"] is False and step["exit_code"] == 124
    said = log.read_text()
    assert "begun" in said and "stopped after 500 s" in said
    child = int(said.partition("child ")[2].split()[0])
    for _ in range(3000):
        if not lives(child):
            break
        time.sleep(0.02)
    assert not lives(child)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


HANGS = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("gpu_check", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
step = (
    "import subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print('child', child.pid, '', flush=True); child.wait()"
)
tool.run("hangs", [sys.executable, "-c", step], 500, pathlib.Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_check_that_is_killed_leaves_no_child_of_a_step(tmp_path: Path) -> None:
    """What compute-sanitizer and ncu run are children of the step and not of the check."""
    log = tmp_path / "log"
    with subprocess.Popen([*python(HANGS), TOOL, log], stdout=subprocess.DEVNULL) as check:
        while not (log.exists() and re.search(r"child \d+ ", log.read_text())):
            assert check.poll() is None
            time.sleep(0.02)
        check.kill()
    child = int(log.read_text().partition("child ")[2].split()[0])
    for _ in range(3000):
        if not lives(child):
            break
        time.sleep(0.02)
    assert not lives(child)


def test_a_second_run_of_a_day_does_not_write_over_the_first(tool: ModuleType, tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = tool.unused(tmp_path, "nvidia-t4-2026-12-01")
        tool.write({}, path)
        names.append(path.name)
    day = "nvidia-t4-2026-12-01"
    assert names == [f"{day}.json", f"{day}-2.json", f"{day}-3.json"]


def test_every_part_of_a_choice_of_tests_chooses_some(tool: ModuleType) -> None:
    """A test that is renamed would leave its step empty, on a GPU that is lent for minutes."""
    names = "\n".join(
        path.read_text("utf-8")
        for path in [*map(ROOT.joinpath, tool.TESTS), *(ROOT / "tests" / "scoring").glob("conformance*.py")]
    )
    for choice in (tool.FIRST, tool.SANITIZED):
        for word in set(re.findall(r"[A-Za-z]\w+", choice)) - {"and", "or", "not"}:
            assert re.search(rf"(def|class) \w*{word}", names), word


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


def test_steps_keep_to_their_seconds_and_to_those_of_all(
    tool: ModuleType, clock: Clock, tmp_path: Path
) -> None:
    kept: dict[str, dict] = {}

    def step(name: str, code: str, seconds: float = 0):
        hangs = clock.passes(seconds, lambda: True)
        return lambda limit, log: tool.run(name, python(code), limit, log, hangs)

    def broken(limit: float, log: Path) -> dict:
        raise RuntimeError("no such GPU")

    steps = [
        ("good", 60, step("good", "pass")),
        ("hangs", 200, step("hangs", "import time; time.sleep(60)", 200)),
        ("broken", 60, broken),
        ("long", 6000, step("long", "import time; time.sleep(60)", 300)),  # more than is left of all
        ("late", 60, step("late", "pass")),
    ]
    tool.perform(steps, 500, tmp_path / "log", lambda name, found: kept.update({name: found}))
    assert list(kept) == ["good", "hangs", "broken", "long", "late"]
    assert [found["passed"] for found in kept.values()] == [True, False, False, False, None]
    assert "no such GPU" in kept["broken"]["error"] and "no time left" in kept["late"]["skipped"]
    assert kept["hangs"]["exit_code"] == kept["long"]["exit_code"] == 124


MEASURES = """
import json, os, sys, time
found = {"cases": [], "left_out": []}
for number in range(3):
    found["cases"].append({"rows": number})
    with open(sys.argv[1] + ".half", "w") as file:
        json.dump(found, file)
    os.replace(sys.argv[1] + ".half", sys.argv[1])
    print("measured", number, flush=True)
    if number == int(sys.argv[2]):
        time.sleep(600)
"""


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
def test_what_was_measured_before_a_stop_is_there(
    tool: ModuleType, clock: Clock, tmp_path: Path, stopped_after: int
) -> None:
    """A benchmark that is killed anywhere leaves what it had found; while it runs, it is in the file too."""
    found, looked = tmp_path / "found.json", []
    stop = clock.passes(100, lambda: looked.count(stopped_after + 1) > 2)

    def look() -> None:
        if found.exists():
            looked.append(len(json.loads(found.read_text())["cases"]))
        stop()

    command = [*python(MEASURES), str(found), str(stopped_after)]
    step = tool.run("part", command, 100, tmp_path / "log", look)
    assert step["passed"] is False and looked[-1] == stopped_after + 1
    assert looked.count(looked[-1]) > 2  # it was looked at while it ran


class Rehearsal:
    """The check as it is on the emulated GPU, small, in a process that may be stopped anywhere."""

    def __init__(self, folder: Path, *, hold: bool = False) -> None:
        if hold:
            (folder / "hold").touch()
        self.result, self.log = folder / "result.json", folder / "log"
        program = [sys.executable, str(Path(__file__).with_name("rehearsal.py")), str(folder)]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def found(self) -> dict:
        return json.loads(self.result.read_text()) if self.result.exists() else {"steps": {}}

    def wait_for(self, known: Callable[[dict], bool]) -> dict:
        """What is in the file once that is known."""
        while True:
            ended = self.process.poll() is not None  # before the file is read: what it wrote last counts
            if known(found := self.found()):
                return found
            assert not ended, self.process.stdout.read()
            time.sleep(0.02)

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in tasks.read_text().split()]

    def stop(self, how: int) -> str:
        children = self.children()
        self.process.send_signal(how)
        said, _ = self.process.communicate()
        while any(lives(child) for child in children):  # ended by the parent, or with it; else this hangs
            time.sleep(0.02)
        return said


def measured(found: dict) -> int:
    return len(found.get("benchmark", {}).get("cases", ()))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_check_that_is_ended_in_the_middle_tells_what_it_has(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, hold=True)
    rehearsal.wait_for(lambda found: measured(found) >= 1)
    said = rehearsal.stop(signal.SIGTERM)
    found, steps = rehearsal.found(), rehearsal.found()["steps"]
    assert rehearsal.process.returncode == 1
    assert measured(found) >= 1 and found["benchmark"]["model"]
    assert steps["first"]["passed"] and steps["single"]["error"] == "the run was ended from outside"
    assert all(steps[name]["passed"] is None for name in ("small", "profile", "rivals"))
    assert "open" in said and "predicted" in said and "wrote" in said
    assert "== single" in rehearsal.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_check_that_is_killed_leaves_what_it_has_measured_and_no_process(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, hold=True)
    before = rehearsal.wait_for(lambda found: measured(found) >= 1)
    rehearsal.stop(signal.SIGKILL)
    assert measured(rehearsal.found()) >= measured(before) and rehearsal.found()["steps"]["first"]["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("last", range(10))
def test_a_check_may_be_killed_after_every_step(tool: ModuleType, last: int, tmp_path: Path) -> None:
    names = [name for name, _, _ in tool.the_check(tool.Record(tmp_path / "none", {}, None), 75)]
    rehearsal = Rehearsal(tmp_path)
    rehearsal.wait_for(lambda found: len(found["steps"]) > last)
    rehearsal.stop(signal.SIGKILL)
    kept = list(rehearsal.found()["steps"])
    assert kept == names[: len(kept)] and len(kept) > last  # in their order
    assert measured(rehearsal.found()) >= (3 if "single" in kept else 0)


def test_the_benchmarks_parts_are_all_in_the_check_and_the_tests_are_there(tool: ModuleType) -> None:
    from cir_bench.cuda_scoring.parts import PARTS

    text = TOOL.read_text(encoding="utf-8")
    assert all(f'of("{name}")' in text for name in PARTS)
    for test in tool.TESTS:
        assert (TOOL.parents[2] / test).exists()
