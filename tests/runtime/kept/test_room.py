"""Folders that cannot be used, too little disk or memory: what is kept costs time only, and makes room."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cir_infer.errors import DeviceError
from cir_infer.runtime.kept import graphs
from cir_infer.runtime.kept.memory import promised, spare_memory
from cir_infer.runtime.tensorrt.plan_cache import cache_folder
from tests.runtime.kept.bundled import Bundled, kept


def test_folders_that_cannot_be_used_cost_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundled = Bundled()
    (tmp_path / "file").write_text("no folder")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for number, place in enumerate((tmp_path / "file", shared), start=1):
        monkeypatch.setenv("CIR_GRAPH_CACHE", str(place))
        assert bundled.answers()
        assert bundled.reads == number
        assert f"graphs are not kept in {place}, opening a bundle stays slow" in caplog.text
        caplog.clear()
    assert not list(shared.iterdir())


@pytest.mark.parametrize("reason", ["no folder", "others may write", "no home", "no memory", "no room"])
def test_one_reason_is_told_once_for_all_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    """A bundle has three, and each met it, the last twice."""
    place = tmp_path / "place"
    if reason == "no folder":
        place.write_text("")
    elif reason == "others may write":
        place.mkdir()
        place.chmod(0o777)
    elif reason == "no home":
        place = Path("~no-such-user-of-this-machine/once")
    monkeypatch.setattr(graphs, "_MEMORY", 1 << 50 if reason == "no memory" else 1)
    if reason == "no room":
        nothing = shutil.disk_usage(tmp_path)._replace(free=0)
        monkeypatch.setattr("cir_infer.runtime.kept.graphs.shutil.disk_usage", lambda _: nothing)
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(place))
    for seed in range(3):
        assert Bundled(seed=seed).answers()
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("graphs are not kept")
    assert "Errno" not in said and said.count("CIR_GRAPH_CACHE") == (reason != "no memory")


def test_a_user_without_a_home_folder_loses_time_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundled = Bundled()
    for variable in ("CIR_GRAPH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv("CIR_GRAPH_CACHE", raising=False)
        monkeypatch.setenv(variable, f"~no-such-user-of-this-machine/{variable}")
        assert bundled.answers()
        assert "no home folder" in caplog.text
        caplog.clear()
    with pytest.raises(DeviceError, match=r"no home folder.*set CIR_PLAN_CACHE"):
        cache_folder()


def test_a_full_disk_costs_time_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    bundled = Bundled()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        assert bundled.answers()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "not kept" in caplog.text
    assert not list(folder.iterdir())


def test_memory_that_is_short_costs_time_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "_MEMORY", 1 << 50)
    assert Bundled().answers()
    assert "MiB of memory are left" in caplog.text
    assert not kept(folder)


def test_what_other_threads_are_promised_is_not_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of a bundle are kept by two threads at once."""
    monkeypatch.setattr("cir_infer.runtime.kept.memory.spare_memory", lambda: 100 << 20)
    said = "0 MiB of memory are left, and 1 are wanted"
    with promised(60 << 20), promised(40 << 20), pytest.raises(OSError, match=said), promised(1 << 20):
        pass
    with promised(100 << 20):
        pass
    with pytest.raises(OSError, match="100 MiB of memory are left"), promised(101 << 20):
        pass


def test_two_graphs_are_not_kept_in_the_memory_of_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Bundled(), Bundled(seed=1)
    spare = graphs._MEMORY * len(first.model) * 3 // 2
    monkeypatch.setattr("cir_infer.runtime.kept.memory.spare_memory", lambda: spare)
    write = graphs.write_graph

    def meanwhile(*given: Any) -> None:
        monkeypatch.setattr(graphs, "write_graph", write)
        assert second.answers()
        write(*given)

    monkeypatch.setattr(graphs, "write_graph", meanwhile)
    assert first.answers()
    assert len(kept(folder)) == 1
    assert "of memory are left" in caplog.text
    assert second.answers()
    assert len(kept(folder)) == 2


def test_spare_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert spare_memory(meminfo, group) is None
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  3000 kB\n")
    assert spare_memory(meminfo, group) == 3000 << 10
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500000\n")
    assert spare_memory(meminfo, group) == 3000 << 10
    (group / "memory.max").write_text("1000000\n")
    assert spare_memory(meminfo, group) == 500_000
    (group / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    assert spare_memory(meminfo, group) == 700_000
    meminfo.write_text("MemAvailable:\n")
    assert spare_memory(meminfo, group) == 700_000
    assert spare_memory() is not None or not Path("/proc/meminfo").exists()


def test_what_was_used_longest_ago_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, newer = Bundled(), Bundled(seed=1)
    assert oldest.answers()
    (first,) = kept(folder)
    assert newer.answers()
    (second,) = set(kept(folder)) - {first}
    os.utime(first, (1e9, 1e9))
    assert oldest.answers()  # used now
    os.utime(second, (1e9, 1e9))
    monkeypatch.setattr(graphs, "_MOST_OF_ALL", first.stat().st_size + 2 * len(oldest.model))
    assert Bundled(seed=2).answers()
    assert first.exists()
    assert not second.exists()


def test_what_processes_left_behind_goes_and_what_is_the_users_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that a user names may hold anything."""
    old = (1e9, 1e9)
    places = [folder / name for name in (".optimised-killed", ".optimised-running", ".mine")]
    for place in places:
        place.mkdir(parents=True, mode=0o700)
        (place / "weights").write_bytes(b"w")
    folder.chmod(0o700)
    mine = folder / "my-work.graph"
    mine.write_bytes(b"m")
    for path in (places[0], places[2], mine):
        os.utime(path, old)
    monkeypatch.setattr(graphs, "_MOST_OF_ALL", 0)
    assert Bundled().answers()
    assert [place.exists() for place in (*places, mine)] == [False, True, True, True]


@pytest.mark.parametrize("place", ["\udcff\udcfe", "x" * 300])
def test_paths_that_nothing_can_write_to_cost_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / place))
    assert Bundled().answers()
    assert "not kept" in caplog.text
