"""How many processors are counted, with control groups as Linux lays them out."""

import os
from pathlib import Path

import pytest

from cir_infer.processes import cpus
from cir_infer.processes.cpus import available_cores, available_cpus


def machine(folder: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A /proc/self and mounted control groups below `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))
    return proc


def v2(folder: Path, root: str = "/", name: str = "sys") -> str:
    return f"30 23 0:26 {root} {folder / name} rw,nosuid - cgroup2 cgroup2 rw"


def v1(folder: Path, root: str = "/", controllers: str = "cpu,cpuacct", name: str = "sys") -> str:
    return f"33 31 0:30 {root} {folder / name} rw - cgroup cgroup rw,{controllers}"


def test_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available_cpus", lambda: 3)
    monkeypatch.setattr(cpus, "_affinity", lambda: {0, 1, 4})
    assert available_cores(tmp_path) is None
    for number, siblings in ((0, "0,4"), (1, "1,5"), (4, "0,4")):
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert available_cores(tmp_path) == 2
    monkeypatch.setattr(cpus, "available_cpus", lambda: 1)  # a quota
    assert available_cores(tmp_path) == 1


def test_no_more_than_the_affinity_mask() -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "counted"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("max 100000", 1 << 30),
        ("what?", 1 << 30),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: Path, limit: str, counted: int) -> None:
    proc = machine(tmp_path, "0::/a/b\n", [v2(tmp_path)], {"sys/a/b/cpu.max": limit + "\n"})
    assert cpus._by_quota(proc) == counted


def test_the_smallest_quota_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    files = {
        "sys/a/b/cpu.max": "max 100000\n",
        "sys/a/cpu.max": "300000 100000\n",
        "sys/cpu.max": "400000 100000",
    }
    proc = machine(tmp_path, "0::/a/b\n", [v2(tmp_path)], files)
    assert cpus._by_quota(proc) == 3


def test_a_quota_of_version_1(tmp_path: Path) -> None:
    files = {"sys/a/cpu.cfs_quota_us": "250000\n", "sys/a/cpu.cfs_period_us": "100000\n"}
    proc = machine(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/a\n", [v1(tmp_path)], files)
    assert cpus._by_quota(proc) == 3


def test_no_quota_of_version_1_is_minus_one(tmp_path: Path) -> None:
    files = {"sys/cpu.cfs_quota_us": "-1\n", "sys/cpu.cfs_period_us": "100000\n"}
    proc = machine(tmp_path, "3:cpu:/\n", [v1(tmp_path)], files)
    assert cpus._by_quota(proc) == 1 << 30


def test_a_container_sees_its_part_of_the_tree(tmp_path: Path) -> None:
    files = {"sys/cpu.max": "200000 100000\n"}
    inside = machine(tmp_path, "0::/docker/abc\n", [v2(tmp_path, "/docker/abc")], files)
    assert cpus._by_quota(inside) == 2


def test_a_group_outside_of_what_is_mounted(tmp_path: Path) -> None:
    proc = machine(tmp_path, "0::/../other\n", [v2(tmp_path)], {"sys/cpu.max": "200000 100000\n"})
    assert cpus._by_quota(proc) == 2


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    files = {"v1/cpu.cfs_quota_us": "200000\n", "v1/cpu.cfs_period_us": "100000\n", "v2/x": ""}
    mounts = [v1(tmp_path, name="v1"), v2(tmp_path, name="v2")]
    proc = machine(tmp_path, "1:cpu:/\n0::/\n", mounts, files)
    assert cpus._by_quota(proc) == 2


def test_a_mount_with_a_blank_in_its_name(tmp_path: Path) -> None:
    mount = v2(tmp_path, name="with blank").replace("with blank", r"with\040blank")
    proc = machine(tmp_path, "0::/\n", [mount], {"with blank/cpu.max": "200000 100000\n"})
    assert cpus._by_quota(proc) == 2


def test_a_system_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_PROC", tmp_path / "nothing")
    assert available_cpus() == len(os.sched_getaffinity(0))


def test_the_quota_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = machine(tmp_path, "0::/\n", [v2(tmp_path)], {"sys/cpu.max": "50000 100000\n"})
    monkeypatch.setattr(cpus, "_PROC", proc)
    assert available_cpus() == 1
