"""The gallery survives crashes: kill -9, failing disks, full disks, power cuts. See docs/gallery.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file layer that fails on command, compiled."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(HERE / "faults.c"), "-ldl"], check=True)
    return library


def crash(layer: Path, folder: Path, what: str, *arguments: str) -> dict[str, Any]:
    return under_faults(layer, "crash", what, str(folder), *arguments)


def under_faults(layer: Path, program: str, *arguments: str) -> dict[str, Any]:
    """Run a program of this folder on the file layer; its report, in which nothing is violated."""
    environment = os.environ | {"LD_PRELOAD": str(layer), "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-m", f"tests.gallery.{program}", *arguments],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    print(json.dumps(report))
    assert report["violations"] == []
    return report


def test_killed_at_random_moments(layer: Path, tmp_path: Path) -> None:
    report = crash(layer, tmp_path, "kills", "--count", "12")
    assert report["kills"] == 12


@pytest.mark.parametrize("scenario", ["replace", "describe", "remove", "compact"])
def test_failing_at_operations_of_a_commit(layer: Path, tmp_path: Path, scenario: str) -> None:
    actions = ["kill", "torn write", "EIO once", "ENOSPC from then on"]
    report = crash(
        layer, tmp_path, "faults", "--scenarios", scenario, "--actions", *actions, "--stride", "17"
    )
    assert report["points"][scenario] > 30
    ends = {outcome.rpartition(" ")[2] for outcome in report["outcomes"]}
    assert ends - {"unknown"} == {"killed", "refused", "acknowledged"}


def test_failing_at_operations_of_an_upgrade(layer: Path, tmp_path: Path) -> None:
    actions = ["kill", "torn write", "ENOSPC once"]
    crash(
        layer, tmp_path, "faults", "--old", "--scenarios", "remove", "--actions", *actions, "--stride", "13"
    )


def test_failing_at_operations_of_a_backup(layer: Path, tmp_path: Path) -> None:
    actions = ["kill", "EIO once", "ENOSPC from then on"]
    report = under_faults(layer, "backup_crash", str(tmp_path), "--stride", "37", "--actions", *actions)
    assert all(count > 50 for count in report["points"].values())
    ends = {outcome.rpartition(" ")[2] for outcome in report["outcomes"]}
    assert ends >= {"killed", "refused"}


def test_killed_at_operations_of_an_import(layer: Path, tmp_path: Path) -> None:
    """Behind it is an empty folder or a whole gallery, and the import can be repeated."""
    report = under_faults(layer, "import_crash", str(tmp_path), "--stride", "11", "--actions", "kill")
    assert all(count > 50 for count in report["points"].values())
    assert set(report["outcomes"]) == {"kill: killed"}


def test_power_cut_in_the_middle(layer: Path, tmp_path: Path) -> None:
    report = crash(layer, tmp_path, "power", "--count", "6", "--stride", "29")
    assert report["examined"] > 20


@pytest.mark.slow
def test_killed_at_hundreds_of_random_moments(layer: Path, tmp_path: Path) -> None:
    report = crash(layer, tmp_path, "kills", "--count", "500", "--seed", "1")
    assert report["kills"] == 500 and len(report["outcomes"]) >= 2


@pytest.mark.slow
def test_failing_at_every_operation_of_every_commit(layer: Path, tmp_path: Path) -> None:
    crash(layer, tmp_path, "faults")


@pytest.mark.slow
def test_failing_at_every_operation_of_a_backup(layer: Path, tmp_path: Path) -> None:
    under_faults(layer, "backup_crash", str(tmp_path))


@pytest.mark.slow
def test_failing_at_every_operation_of_an_import(layer: Path, tmp_path: Path) -> None:
    under_faults(layer, "import_crash", str(tmp_path))


@pytest.mark.slow
def test_failing_at_every_operation_of_an_upgrade(layer: Path, tmp_path: Path) -> None:
    crash(layer, tmp_path, "faults", "--old", "--scenarios", "remove", "add")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_power_cut_behind_every_operation(layer: Path, tmp_path: Path, seed: int) -> None:
    crash(layer, tmp_path, "power", "--count", "25", "--variants", "3", "--seed", str(seed))
