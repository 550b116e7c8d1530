"""The file of a plan, its key, and the folder of plans."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import DeviceError
from cir_infer.runtime.tensorrt.plan_cache import PlanCache, cache_folder, l4t_release
from cir_infer.runtime.tensorrt.plan_file import PlanFile, PlanKey, read_plan
from tests.runtime.owners import belongs_to_another

KEY = PlanKey(
    "a" * 64, "10.3.0", "8.7", "Orin", "float16", {"batch": 8, "tokens": 64}, ("strongly typed",), None
)


def test_a_plan_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    assert "no plan was built" in str(cache.find("image", KEY))
    plan = PlanFile(KEY.to_json(), {"seconds": 3.0}, b"\x00plan\xff")
    path = cache.store("image", KEY, plan)
    assert cache.find("image", KEY) == plan
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in cache.folder.iterdir()] == [path.name], "no temporary file is left"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("graph", "b" * 64),
        ("tensorrt", "10.13.0.35"),
        ("compute_capability", "7.5"),
        ("gpu", "T4"),
        ("precision", "float32"),
        ("limits", {"batch": 32, "tokens": 64}),
        ("flags", ("bound layer by layer",)),
        ("l4t", "36.4.0"),
    ],
)
def test_whatever_a_plan_depends_on_is_in_its_key(field: str, value: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    other = replace(KEY, **{field: value})
    cache = PlanCache(tmp_path / "plans")
    path = cache.store("image", KEY, PlanFile(KEY.to_json(), {}, b"plan"))
    assert isinstance(cache.find("image", other), str)
    # Also where someone renamed the file.
    path.rename(cache.path("image", other))
    assert f"built for something else: {field}" in str(cache.find("image", other))


@settings(max_examples=60)
@given(st.data())
def test_no_damage_goes_unnoticed(data: st.DataObject) -> None:
    import tempfile

    content = bytearray(PlanFile(KEY.to_json(), {"seconds": 1.0}, bytes(range(200))).to_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        assert isinstance(read_plan(Path(file.name)), str)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(DeviceError, match=r"not trusted.*other users may write.*chmod go-w"):
        PlanCache(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="set CIR_PLAN_CACHE"):
        PlanCache(tmp_path / "file" / "plans")


def test_what_belongs_to_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder; and a plan that was put there while others might write to the folder."""
    cache = PlanCache(tmp_path / "plans")
    path = cache.store("image", KEY, PlanFile(KEY.to_json(), {"seconds": 1.0}, b"plan"))
    assert isinstance(cache.find("image", KEY), PlanFile)
    path.chmod(0o666)
    assert "cannot be used: other users may write to it" in str(cache.find("image", KEY))
    path.chmod(0o600)
    belongs_to_another(path, monkeypatch)
    assert "cannot be used: it belongs to another user (number " in str(cache.find("image", KEY))
    belongs_to_another(cache.folder, monkeypatch)
    with pytest.raises(DeviceError, match=r"not trusted.*it belongs to another.*set CIR_PLAN_CACHE") as told:
        PlanCache(cache.folder)
    assert "chmod" not in str(told.value)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIR_PLAN_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("CIR_PLAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/cir-infer/plans")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/cir-infer/plans").expanduser()


def test_plans_of_a_folder_that_cannot_be_written_to_are_read(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    plan = PlanFile(KEY.to_json(), {}, b"plan")
    path = cache.store("image", KEY, plan)
    for suffix in (".lock", ".driver"):
        path.with_suffix(suffix).mkdir()  # whoever runs this may write anywhere, but not over a folder
    with cache.building("image", KEY):
        assert cache.find("image", KEY) == plan
    cache.note_checked("image", KEY, "12060")
    assert cache.checked_with("image", KEY) is None
    assert [p for p in cache.folder.iterdir() if p.name.startswith(".")] == []


def test_plans_on_a_file_system_without_locks_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    cache, built = PlanCache(tmp_path / "plans"), []
    with cache.building("image", KEY):
        built.append(cache.store("image", KEY, PlanFile(KEY.to_json(), {}, b"plan")))
    assert built


def test_the_release_of_a_jetson(tmp_path: Path) -> None:
    path = tmp_path / "nv_tegra_release"
    assert l4t_release(path) is None
    path.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert l4t_release(path) == "36.4.3"


def hold(folder: Path, ready: Any, go: Any) -> None:
    with PlanCache(folder).building("image", KEY):
        ready.set()
        go.wait(120)


def test_one_process_builds_and_the_others_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "plans", ready, go))
    other.start()
    assert ready.wait(120)
    released: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        released.append(record.getMessage())
        go.set()  # we are waiting now
        return True

    logging.getLogger("cir_infer.runtime.tensorrt.plan_cache").addFilter(note)
    try:
        with PlanCache(tmp_path / "plans").building("image", KEY):
            assert released == ["waiting for another process that builds the plan of the image graph"]
    finally:
        logging.getLogger("cir_infer.runtime.tensorrt.plan_cache").removeFilter(note)
    other.join(120)
    assert other.exitcode == 0
