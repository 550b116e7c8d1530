"""The machine finds every planted mistake; only then does its silence about our kernels mean anything."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.emulation.emulated import EmulatedDevice, KernelFault


class Arguments(ctypes.Structure):
    _fields_ = (("out", ctypes.c_void_p), ("count", ctypes.c_uint32))


def run(kernel: str, shared_bytes: int = 64 * 4, **device: int) -> list[int]:
    machine = EmulatedDevice(**device)
    memory = machine.allocate(64 * 4)
    try:
        machine.launch(kernel, (1, 1), shared_bytes, Arguments(memory.address, 64), None)
        return [int(v) for v in memory.array.view(np.uint32)]
    finally:
        memory.free()


def test_a_correct_kernel_passes_under_every_schedule() -> None:
    for schedule in range(5):
        assert run("correct", schedule=schedule) == list(range(63, -1, -1))


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("writes_beyond_the_end", r"outside of memory.*\+256 bytes from the start of an allocation of 256"),
        ("reads_before_the_start", "outside of memory"),
        ("half_the_block_skips_a_barrier", "wait for others that never come"),
        ("lanes_take_different_barriers", "different barriers"),
        ("a_lane_misses_a_shuffle", "waits for its warp"),
        ("loads_a_vector_from_an_odd_address", "misaligned"),
    ],
)
def test_a_fault_is_reported(kernel: str, said: str) -> None:
    with pytest.raises(KernelFault, match=said):
        run(kernel)


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


def test_an_argument_structure_of_another_size_is_refused() -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("out", ctypes.c_void_p), ("count", ctypes.c_uint64), ("more", ctypes.c_uint64))

    with pytest.raises(KernelFault, match="another size"):
        EmulatedDevice().launch("correct", (1, 1), 256, Longer(0, 0, 0), None)
