"""The machine finds every planted mistake; only then does its silence about our kernels mean anything."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.emulated import EmulatedDevice, KernelFault, Unit, compiled


class Arguments(ctypes.Structure):
    _fields_ = (("out", ctypes.c_void_p), ("count", ctypes.c_uint32))


def run(kernel: str, shared_bytes: int = 64 * 4, **device: Any) -> list[int]:
    machine = EmulatedDevice(**device)
    memory = machine.allocate(64 * 4)
    try:
        machine.launch(kernel, (1, 1), shared_bytes, Arguments(memory.address, 64), None)
        return [int(v) for v in memory.array.view(np.uint32)]
    finally:
        memory.free()


@pytest.mark.parametrize("checked", [False, True])
def test_a_correct_kernel_passes_under_every_schedule(checked: bool) -> None:
    for schedule in range(5):
        assert run("correct", schedule=schedule, checked=checked) == list(range(63, -1, -1))
        assert run("counts", schedule=schedule, checked=checked) == [64] * 64


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("writes_beyond_the_end", r"outside of memory.*256 (bytes from the start )?of an allocation of 256"),
        ("reads_before_the_start", "outside of memory"),
        ("half_the_block_skips_a_barrier", "wait for others that never come"),
        ("lanes_take_different_barriers", "different barriers"),
        ("a_lane_misses_a_shuffle", "waits for its warp"),
        ("loads_a_vector_from_an_odd_address", "misaligned"),
    ],
)
def test_a_fault_is_reported(kernel: str, said: str) -> None:
    for checked in (False, True):
        with pytest.raises(KernelFault, match=said):
            run(kernel, checked=checked)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("writes_one_beyond_the_end", r"it writes 4 bytes at 260 of an allocation of 260; .* thread 63"),
        ("reads_one_before_the_start", "it reads 4 bytes at -4 of an allocation"),
        ("reads_memory_of_the_gpu_that_nothing_wrote", "memory that nothing wrote: it reads 4 bytes at"),
        ("reads_what_nothing_wrote", "shared memory that nothing wrote: byte 20 is read; .* thread 5"),
        ("counts_from_nothing", "shared memory that nothing wrote"),
        ("forgets_a_barrier", "shared memory that nothing wrote|a race"),
        (
            "writes_what_others_still_read",
            "a race: byte .* is (written, and thread .* reads|read, and thread .* writes) it",
        ),
        ("reads_a_count_that_others_raise", "a race: byte 0"),
        ("reads_of_the_gpu_what_others_just_write", "a race: another thread of the block .*it reads"),
        ("takes_a_shuffle_for_a_barrier", "a race"),
    ],
)
@pytest.mark.parametrize("schedule", range(4))
def test_the_checked_machine_finds_it_under_every_schedule(kernel: str, said: str, schedule: int) -> None:
    """Also where the result is right by luck, and within the last bytes that a guard page does not cover."""
    machine = EmulatedDevice(checked=True, schedule=schedule)
    memory = machine.allocate(65 * 4)
    with pytest.raises(KernelFault, match=said):
        machine.launch(kernel, (1, 1), 64 * 4, Arguments(memory.address, 65), None)
    memory.free()


def test_shared_memory_ends_to_the_byte() -> None:
    run("uses_more_shared_memory_than_it_asked_for", shared_bytes=68 * 4, checked=True)
    with pytest.raises(KernelFault, match="it writes 4 bytes at 268 of 268 of shared memory"):
        run("uses_more_shared_memory_than_it_asked_for", shared_bytes=67 * 4, checked=True)


def test_bytes_that_the_host_wrote_may_be_read() -> None:
    machine = EmulatedDevice(checked=True)
    memory = machine.allocate(64 * 4)
    kernel, arguments = "reads_memory_of_the_gpu_that_nothing_wrote", Arguments(memory.address, 64)
    machine.zero(memory.address, 32 * 4, None)
    with pytest.raises(KernelFault, match="nothing wrote"):
        machine.launch(kernel, (1, 1), 0, arguments, None)
    machine.upload(memory.address + 32 * 4, np.arange(32, dtype=np.uint32), None)
    machine.launch(kernel, (1, 1), 0, arguments, None)
    assert memory.array.view(np.uint32)[:2].tolist() == [31, 30]
    memory.free()


def test_shared_memory_ends_where_the_launch_said() -> None:
    with pytest.raises(KernelFault, match="outside of memory"):
        run("uses_more_shared_memory_than_it_asked_for")
    run("uses_more_shared_memory_than_it_asked_for", shared_bytes=68 * 4)


def test_a_missing_barrier_shows_as_a_result_that_depends_on_the_schedule() -> None:
    answers = {tuple(run("forgets_a_barrier", schedule=s)) for s in range(4)}
    assert len(answers) > 1


def test_memory_that_nothing_wrote_shows_as_a_result_that_depends_on_its_filling() -> None:
    answers = {tuple(run("reads_what_nothing_wrote", filling=f)) for f in (0x00, 0xFF)}
    assert len(answers) == 2


def add_up(kernel: str, **device: Any) -> list[int]:
    machine = EmulatedDevice(**device)
    memory = machine.allocate((1 + 3 * 64 + 64) * 4)
    try:
        machine.zero(memory.address, 4, None)
        machine.launch(kernel, (3, 1), 4, Arguments(memory.address, 0), None)
        return [int(v) for v in memory.array.view(np.uint32)[1 + 3 * 64 :]]
    finally:
        memory.free()


@pytest.mark.parametrize("checked", [False, True])
def test_the_last_block_may_read_what_the_others_left(checked: bool) -> None:
    for schedule in range(4):
        for kernel in ("last_block_adds_up", "one_fence_for_all"):
            assert add_up(kernel, checked=checked, schedule=schedule) == [3 * 2016] * 64


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("orders_nothing_by_a_fence", "with no fence, barrier and atomic between: it reads"),
        ("takes_the_ticket_before_others_have_written", "with no fence, barrier and atomic between"),
        ("one_fence_too_early", "with no fence, barrier and atomic between: it reads"),
        ("reads_other_blocks_from_a_cache", "read as if it could not change: it reads 4 bytes"),
        ("reads_other_blocks_as_constants", "read-only data that this launch writes"),
    ],
)
def test_blocks_owe_each_other_order(kernel: str, said: str) -> None:
    """On a GPU such a mistake shows once in a million launches; here at once."""
    for schedule in range(4):
        with pytest.raises(KernelFault, match=said):
            add_up(kernel, checked=True, schedule=schedule)


def swap(kernel: str, together: bool = True, blocks: int = 3, **device: Any) -> list[int]:
    machine = EmulatedDevice(**device)
    memory = machine.allocate((1 + 2 * 64 * blocks) * 4)
    try:
        machine.zero(memory.address, 4, None)
        arguments = Arguments(memory.address, 0)
        machine._launch(machine._machine, kernel, (blocks, 1), 4, arguments, together)
        return [int(v) for v in memory.array.view(np.uint32)[1 + 64 * blocks :: 64]]
    finally:
        memory.free()


@pytest.mark.parametrize("checked", [False, True])
def test_blocks_that_are_there_together_may_wait_for_one_another(checked: bool) -> None:
    for schedule in range(5):
        assert swap("blocks_swap", checked=checked, schedule=schedule) == [1, 2, 0]


@pytest.mark.parametrize("schedule", range(4))
def test_a_wait_that_cannot_end_is_reported(schedule: int) -> None:
    for checked in (False, True):
        said = r"wait for others that never come: block .* waits for a count of 4 that stands at 3"
        with pytest.raises(KernelFault, match=said):
            swap("waits_for_a_block_too_many", schedule=schedule, checked=checked)
        # After an ordinary launch the others may come only when the first ones are done.
        with pytest.raises(KernelFault, match="waits for a count of 3 that stands at 1"):
            swap("blocks_swap", together=False, schedule=schedule, checked=checked)


@pytest.mark.parametrize("kernel", ["waits_for_a_block_too_few", "waits_for_no_block"])
def test_a_wait_that_ends_too_early_is_reported(kernel: str) -> None:
    """Under an order in which it shows; at random one block may always be the first."""
    found = 0
    for schedule in range(6):
        try:
            swap(kernel, schedule=schedule, checked=True)
        except KernelFault as fault:
            found += "memory that nothing wrote" in str(fault) or "with no fence" in str(fault)
    assert found > 0


def test_more_blocks_than_the_machine_holds_are_refused() -> None:
    with pytest.raises(KernelFault, match="more blocks at once"):
        swap("blocks_swap", blocks=129)


def test_an_argument_structure_of_another_size_is_refused() -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("out", ctypes.c_void_p), ("count", ctypes.c_uint64), ("more", ctypes.c_uint64))

    with pytest.raises(KernelFault, match="another size"):
        EmulatedDevice().launch("correct", (1, 1), 256, Longer(0, 0, 0), None)


def test_what_several_need_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, calls = tmp_path / "compiler", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\necho "$5" >>{calls}\nsleep 0.05\ntouch "$4"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    units = []
    for name in ("a", "b", "c"):
        source = tmp_path / f"{name}.cpp"
        source.write_text(f"int {name};")
        units.append(Unit(tmp_path / "made", source, ["-O0"], []))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: compiled(units), range(3)))
    assert sorted(calls.read_text().split()) == [str(unit.source) for unit in units]
    assert found[0] == found[1] == found[2] and all(path.exists() for path in found[0])
