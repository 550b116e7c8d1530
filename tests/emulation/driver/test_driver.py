"""The emulated driver refuses what a real one refuses, and our own calls of a driver hold on it."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from cir_infer.errors import DeviceError
from cir_infer.gpu.driver import driver_function
from tests.emulation.driver.building import build_driver, run_program


def run(program: str, **settings: str | int) -> subprocess.CompletedProcess[str]:
    return run_program("tests.emulation.driver.programs", program, driver=build_driver(), **settings)


@pytest.mark.parametrize("order", ["late", "early", "1"])
@pytest.mark.parametrize("program", ["contexts", "memory", "captures", "our_graphs", "our_registered_memory"])
def test_calls_are_answered_as_cuda_says(program: str, order: str) -> None:
    done = run(program, order=order)
    assert done.returncode == 0, done.stderr
    assert "the emulated driver" not in done.stderr, done.stderr


def test_copies_of_page_locked_memory_read_late() -> None:
    done = run("copies_of_page_locked_memory_read_late", order="late")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("order", "seen"), [("late", "1"), ("early", "1"), ("1", "12")])
def test_streams_are_not_ordered_unless_by_events(order: str, seen: str) -> None:
    done = run("streams_are_not_ordered", order=order)
    assert (done.returncode, done.stdout.strip()) == (0, seen), done.stderr


@pytest.mark.parametrize("order", ["late", "early", "1"])
def test_events_tell_a_gpu_that_works_beside_the_host(order: str) -> None:
    done = run("events_tell_a_gpu_that_works_beside_the_host", order=order, call=10, rate=1000)
    assert done.returncode == 0, done.stderr


def test_images_and_launches_are_looked_at() -> None:
    done = run("modules", version=12060)
    assert done.returncode == 0, done.stderr


def test_freeing_what_is_in_use_is_reported() -> None:
    done = run("work_under_way_uses_what_is_freed", order="late")
    assert done.returncode == 0, done.stderr
    assert "memory is freed that work under way uses: a fill of 64 bytes" in done.stderr


def test_cooperative_modules_load_and_say_what_fits() -> None:
    done = run("our_cooperative_module")
    assert done.returncode == 0, done.stderr
    assert "error 209 of the driver (no kernel image is available for execution on the device)" in done.stdout


def test_read_only_memory_may_be_refused() -> None:
    done = run("our_registered_memory", read_only=0)
    assert done.returncode == 1 and "the driver does not map this memory" in done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "None"),
        ({"devices": 0}, "the NVIDIA driver sees no GPU"),
        ({"init": 803}, "the NVIDIA driver does not start (error 803)"),
    ],
)
def test_the_probe_says_what_it_finds(settings: dict[str, int], said: str) -> None:
    done = run("probe", **settings)
    assert done.returncode == 0 and done.stdout.startswith(said), done.stdout + done.stderr


def test_a_driver_that_is_too_old_is_an_error_of_ours() -> None:
    with pytest.raises(DeviceError, match="too old: it has no cuGraphInstantiateWithFlags; update it"):
        driver_function(SimpleNamespace(), "cuGraphInstantiateWithFlags")
    assert driver_function(SimpleNamespace(cuInit=len), "cuInit")("ab") == 2
