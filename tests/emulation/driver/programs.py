"""Programs for processes that find the emulated driver: what it must refuse, and our own calls of it.

Each is a function without arguments that fails by an exception; the module's one argument is its name. No
PyCUDA here: ctypes only, as in our own code.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
import threading
from collections.abc import Callable
from ctypes import POINTER, byref, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

import numpy as np

NON_BLOCKING = 1
THREAD_LOCAL, RELAXED = 1, 2


class Driver:
    """Calls by name; an answer other than the expected one is an error."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name: str, *arguments: Any, answers: int = 0) -> None:
        status = getattr(self._library, name)(*arguments)
        assert status == answers, f"{name} answered {status}, not {answers}"

    def open(self) -> Driver:
        """Starts it, with the primary context current in this thread."""
        self("cuInit", 0)
        self.push()
        return self

    def push(self) -> None:
        context = c_void_p()
        self("cuDevicePrimaryCtxRetain", byref(context), 0)
        self("cuCtxPushCurrent_v2", context)

    def allocate(self, nbytes: int) -> c_uint64:
        address = c_uint64()
        self("cuMemAlloc_v2", byref(address), c_size_t(nbytes))
        return address

    def pinned(self, nbytes: int) -> Any:
        """Page-locked bytes, as NumPy sees them."""
        memory = c_void_p()
        self("cuMemHostAlloc", byref(memory), c_size_t(nbytes), 3)
        return np.ctypeslib.as_array(ctypes.cast(memory, POINTER(ctypes.c_uint8)), (nbytes,))

    def stream(self, flags: int = NON_BLOCKING) -> c_void_p:
        handle = c_void_p()
        self("cuStreamCreate", byref(handle), flags)
        return handle

    def event(self, flags: int = 2) -> c_void_p:
        handle = c_void_p()
        self("cuEventCreate", byref(handle), flags)
        return handle

    def up(self, to: c_uint64, array: Any, stream: c_void_p, answers: int = 0, offset: int = 0) -> None:
        to = c_uint64(to.value + offset)
        self("cuMemcpyHtoDAsync_v2", to, pointer(array), c_size_t(array.nbytes), stream, answers=answers)

    def down(self, array: Any, source: c_uint64, stream: c_void_p, answers: int = 0) -> None:
        size = c_size_t(array.nbytes)
        self("cuMemcpyDtoHAsync_v2", pointer(array), source, size, stream, answers=answers)

    def record(self, stream: c_void_p) -> c_void_p:
        event = self.event()
        self("cuEventRecord", event, stream)
        return event

    def end_capture(self, stream: c_void_p, answers: int = 0) -> c_void_p:
        graph = c_void_p()
        self("cuStreamEndCapture", stream, byref(graph), answers=answers)
        return graph

    def in_thread(self, act: Callable[[], object]) -> None:
        """Runs it in another thread, where the context is current as well."""

        def pushed() -> None:
            self.push()
            act()

        in_thread(pushed)


def pointer(array: Any) -> c_void_p:
    return c_void_p(array.ctypes.data)


def image(architecture: int, ptx: tuple[int, int] = (8, 0)) -> bytes:
    """A container with PTX for one architecture, of which the machine has the code."""
    payload = b".version\0".ljust(16, b"\0")
    entry = struct.pack(
        "<HHIQIIHHIIIQQQ", 1, 0x101, 64, len(payload), 0, 0, *reversed(ptx), architecture, 0, 0, 0, 0, 0
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry) + len(payload)) + entry + payload


# ---- what the driver refuses ----


def contexts() -> None:
    driver = Driver()
    address = c_uint64()
    driver("cuMemAlloc_v2", byref(address), c_size_t(8), answers=3)
    driver("cuInit", 1, answers=1)
    driver("cuInit", 0)
    driver("cuMemAlloc_v2", byref(address), c_size_t(8), answers=201)
    driver("cuCtxPopCurrent_v2", None, answers=201)
    driver("cuDevicePrimaryCtxRelease_v2", 0, answers=201)
    driver.push()
    driver.allocate(8)

    def elsewhere() -> None:
        driver("cuMemAlloc_v2", byref(address), c_size_t(8), answers=201)  # current in another thread only

    in_thread(elsewhere)
    driver("cuDevicePrimaryCtxRelease_v2", 0)
    driver("cuMemAlloc_v2", byref(address), c_size_t(8), answers=709)  # still current, and gone
    driver("cuCtxPopCurrent_v2", None)
    driver.push()
    driver.allocate(8)


def memory() -> None:
    driver = Driver().open()
    address, stream = driver.allocate(100), driver.stream()
    driver("cuMemAlloc_v2", byref(c_uint64()), c_size_t(0), answers=1)
    driver("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1 << 40), answers=2)
    host = np.zeros(101, np.uint8)
    driver.up(address, host, stream, answers=1)
    driver.up(address, host[:100], stream)
    driver.up(address, host[:1], stream, offset=100, answers=1)
    driver("cuMemsetD8Async", address, 0, c_size_t(101), stream, answers=1)
    driver("cuMemFree_v2", c_uint64(address.value + 4), answers=1)
    driver("cuStreamSynchronize", stream)
    driver("cuMemFree_v2", address)
    driver("cuMemFree_v2", address, answers=1)
    driver.up(address, host[:1], stream, answers=1)
    driver("cuStreamSynchronize", c_void_p(12345), answers=400)
    pinned = driver.pinned(10)
    driver("cuMemFreeHost", c_void_p(pinned.ctypes.data + 1), answers=1)
    driver("cuMemFreeHost", pointer(pinned))
    driver("cuMemFreeHost", c_void_p(address.value), answers=1)
    block = np.zeros(20_000, np.uint8)
    driver("cuMemHostRegister_v2", pointer(block), c_size_t(9000), 3)
    driver("cuMemHostRegister_v2", pointer(block), c_size_t(9000), 3, answers=712)
    # The next bytes lie on a page that is locked already.
    driver("cuMemHostRegister_v2", pointer(block[9000:]), c_size_t(4), 3, answers=712)
    driver("cuMemHostUnregister", pointer(block[1:]), answers=713)
    driver("cuMemHostUnregister", pointer(block))
    driver("cuStreamDestroy_v2", stream)


def work_under_way_uses_what_is_freed() -> None:
    driver = Driver().open()
    address, stream = driver.allocate(64), driver.stream()
    driver("cuMemsetD8Async", address, 0, c_size_t(64), stream)
    driver("cuMemFree_v2", address)
    driver("cuStreamSynchronize", stream, answers=700)
    driver("cuStreamSynchronize", stream, answers=700)  # the context is lost


def copies_of_page_locked_memory_read_late() -> None:
    """What is written into a staging buffer before the stream has passed is what the GPU gets."""
    driver = Driver().open()
    address, stream = driver.allocate(4), driver.stream()
    locked, pageable, found = driver.pinned(4), np.full(4, 1, np.uint8), driver.pinned(4)
    locked[:] = 1
    driver.up(address, locked, stream)
    locked[:] = 2
    driver.down(found, address, stream)
    driver("cuStreamSynchronize", stream)
    assert found.tolist() == [2] * 4, found
    driver.up(address, pageable, stream)
    pageable[:] = 2
    driver.down(found, address, stream)
    found[:] = 9
    driver("cuStreamSynchronize", stream)
    assert found.tolist() == [1] * 4, found


def streams_are_not_ordered() -> None:
    """Which of two writes comes last, without an event between: prints it; with one it is certain."""
    driver = Driver().open()
    address, first, second = driver.allocate(4), driver.stream(), driver.stream()
    found = np.zeros(4, np.uint8)
    seen = ""
    for _ in range(20):
        driver("cuMemsetD8Async", address, 1, c_size_t(4), first)
        driver("cuMemsetD8Async", address, 2, c_size_t(4), second)
        driver("cuStreamSynchronize", first)
        driver.down(found, address, first)
        seen += str(found[0])
        driver("cuCtxSynchronize")
    for _ in range(20):
        driver("cuMemsetD8Async", address, 1, c_size_t(4), first)
        driver("cuStreamWaitEvent", second, driver.record(first), 0)
        driver("cuMemsetD8Async", address, 2, c_size_t(4), second)
        driver("cuStreamWaitEvent", first, driver.record(second), 0)
        driver.down(found, address, first)
        assert found[0] == 2
    # The legacy stream waits for blocking streams, and for no others.
    blocking = driver.stream(0)
    driver("cuMemsetD8Async", address, 3, c_size_t(4), blocking)
    driver("cuMemcpyDtoH_v2", pointer(found), address, c_size_t(4))
    assert found[0] == 3
    print("".join(sorted(set(seen))))


def events_tell_a_gpu_that_works_beside_the_host() -> None:
    """Of calls that take 10 us, and memory of 1,000 bytes a us."""
    driver = Driver().open()
    large, small = driver.allocate(1_000_000), driver.allocate(1000)
    stream, start, end = driver.stream(), driver.event(0), driver.event(0)

    def elapsed(memory: c_uint64, first: int) -> int:
        """Microseconds of three fills, so many other ones before the start."""
        for fill in range(first + 3):
            if fill == first:
                driver("cuEventRecord", start, stream)
            driver("cuMemsetD8Async", memory, 1, c_size_t(1), stream)
        driver("cuEventRecord", end, stream)
        driver("cuEventSynchronize", end)
        milliseconds = ctypes.c_float()
        driver("cuEventElapsedTime_v2", byref(milliseconds), start, end)
        return round(1e3 * milliseconds.value)

    # An idle GPU passes the start at once and waits for the first fill; short ones never keep it busy.
    assert (elapsed(large, 0), elapsed(large, 1)) == (3010, 3000)
    assert elapsed(small, 0) == elapsed(small, 9) == 40


def modules() -> None:
    driver = Driver().open()
    module, function = c_void_p(), c_void_p()
    driver("cuModuleLoadData", byref(module), b"\0" * 64, answers=200)
    driver("cuModuleLoadData", byref(module), image(120), answers=209)
    driver("cuModuleLoadData", byref(module), image(75, (9, 0)), answers=222)  # the driver is of CUDA 12.6
    driver("cuModuleLoadData", byref(module), image(75))
    driver("cuModuleGetFunction", byref(function), module, b"no_such_kernel", answers=500)
    driver("cuModuleGetFunction", byref(function), module, b"encode_gru")
    stream, arguments = driver.stream(), (ctypes.c_uint64 * 64)()
    parameters = (c_void_p * 1)(ctypes.addressof(arguments))

    def launch(grid: int, threads: int, shared: int, answers: int, name: str = "cuLaunchKernel") -> None:
        last = (parameters,) if "Cooperative" in name else (parameters, None)
        sizes = [c_uint(n) for n in (grid, 1, 1, threads, 1, 1, shared)]
        driver(name, function, *sizes, stream, *last, answers=answers)

    launch(0, 256, 0, 1)
    launch(1, 2048, 0, 1)
    launch(1, 512, 0, 701)
    launch(1, 256, (48 << 10) + 1, 1)
    driver("cuFuncSetAttribute", function, 8, (64 << 10) + 1, answers=1)
    driver("cuFuncSetAttribute", function, 8, 64 << 10)
    blocks = c_int()
    driver("cuOccupancyMaxActiveBlocksPerMultiprocessor", byref(blocks), function, 256, c_size_t(64 << 10))
    assert blocks.value == 1, blocks
    launch(5, 256, 64 << 10, 720, "cuLaunchCooperativeKernel")
    size = c_size_t(8)
    buffer = (c_void_p * 5)(1, ctypes.addressof(arguments), 2, ctypes.addressof(size), None)
    sizes = [c_uint(n) for n in (1, 1, 1, 256, 1, 1, 0)]
    driver("cuLaunchKernel", function, *sizes, stream, None, buffer, answers=1)  # too few bytes of arguments


def captures() -> None:
    driver = Driver().open()
    address, stream, other = driver.allocate(4), driver.stream(), driver.stream()
    outside, exec_ = driver.record(other), c_void_p()

    def begin(mode: int = THREAD_LOCAL) -> None:
        driver("cuStreamBeginCapture_v2", stream, c_int(mode))

    driver("cuStreamBeginCapture_v2", None, c_int(THREAD_LOCAL), answers=900)
    driver.end_capture(stream, answers=401)
    calls: list[Callable[[], object]] = [
        lambda: driver("cuStreamSynchronize", stream, answers=900),
        lambda: driver("cuCtxSynchronize", answers=900),
        lambda: driver("cuMemAlloc_v2", byref(c_uint64()), c_size_t(4), answers=900),
        lambda: driver("cuMemFree_v2", address, answers=900),
        lambda: driver("cuStreamWaitEvent", stream, outside, 0, answers=905),
        lambda: driver("cuEventSynchronize", driver.record(stream), answers=907),
        lambda: driver.up(address, np.zeros(4, np.uint8), stream, answers=900),
        lambda: driver.in_thread(lambda: driver("cuCtxSynchronize", answers=900)),
    ]
    for call in calls:
        begin()
        driver("cuMemsetD8Async", address, 7, c_size_t(4), stream)
        call()
        driver("cuMemsetD8Async", address, 7, c_size_t(4), stream, answers=901)
        driver.end_capture(stream, answers=901)
    begin()
    driver.in_thread(lambda: driver.allocate(4))  # not seen by a capture of this mode
    driver.in_thread(lambda: driver.end_capture(stream, answers=908))
    driver("cuStreamWaitEvent", other, driver.record(stream), 0)
    driver.end_capture(other, answers=903)
    driver.end_capture(stream, answers=901)
    begin()
    driver("cuStreamWaitEvent", other, driver.record(stream), 0)
    driver("cuMemsetD8Async", address, 7, c_size_t(4), other)
    driver.end_capture(stream, answers=904)
    blocking = driver.stream(0)
    driver("cuStreamBeginCapture_v2", blocking, c_int(RELAXED))
    driver("cuMemsetD8Async", address, 7, c_size_t(4), None, answers=906)
    driver.end_capture(blocking, answers=901)
    # A fork that is joined, with a copy that reads its source at every launch.
    source, found = driver.pinned(4), np.zeros(4, np.uint8)
    begin()
    driver("cuStreamWaitEvent", other, driver.record(stream), 0)
    driver.up(address, source, other)
    driver("cuStreamWaitEvent", stream, driver.record(other), 0)
    graph = driver.end_capture(stream)
    driver("cuGraphInstantiateWithFlags", byref(exec_), graph, c_ulonglong(0))
    driver("cuGraphDestroy", graph)
    driver("cuGraphDestroy", graph, answers=400)
    for value in (3, 4):
        source[:] = value
        driver("cuGraphLaunch", exec_, stream)
        driver.down(found, address, stream)
        assert found.tolist() == [value] * 4, found
    driver("cuGraphExecDestroy", exec_)
    driver("cuGraphLaunch", exec_, stream, answers=400)


# ---- our own calls ----


def our_graphs() -> None:
    """`_CapturedGraph`: a replay, an exception in between, and a refusal."""
    from cir_infer.errors import DeviceError
    from cir_infer.gpu.context import _CapturedGraph

    driver = Driver().open()
    address, stream, found = driver.allocate(4), driver.stream(), np.zeros(4, np.uint8)
    handle = int(stream.value or 0)
    source = driver.pinned(4)
    graph = _CapturedGraph(handle, lambda: driver.up(address, source, stream))
    for value in (5, 6):
        source[:] = value
        graph.launch()
        driver("cuStreamSynchronize", stream)
        driver.down(found, address, stream)
        assert found.tolist() == [value] * 4, found
    graph.close()
    graph.close()

    def failing() -> None:
        raise KeyError("ours")

    for enqueue, wanted in (
        (failing, KeyError),
        (lambda: driver("cuCtxSynchronize", answers=900), DeviceError),
    ):
        try:
            _CapturedGraph(handle, enqueue)
        except wanted as error:
            print(error)
        else:
            raise AssertionError("the capture should have failed")
        driver.up(address, source, stream)  # the stream is usable again
        driver("cuStreamSynchronize", stream)


def our_registered_memory() -> None:
    """`_RegisteredMemory`: arrays of ours, read-only ones, and refusals that leave nothing behind."""
    from cir_infer.gpu.context import _RegisteredMemory

    driver = Driver().open()
    address, stream = driver.allocate(4096), driver.stream()
    # In pages of their own: CUDA refuses a page twice, and the heap may put two small arrays into one.
    rows = np.frombuffer(mmap.mmap(-1, 4096), np.float32).reshape(32, 32)
    rows[:] = np.arange(1024).reshape(32, 32)
    frozen = np.frombuffer(mmap.mmap(-1, 100_000), np.uint8)
    frozen.flags.writeable = False
    held = [_RegisteredMemory(rows), _RegisteredMemory(frozen)]
    assert held[0].address == rows.ctypes.data and held[0].array.nbytes == rows.nbytes
    driver.up(address, rows, stream)
    rows[:] = -1  # seen, for it is page-locked
    found = np.zeros(1024, np.float32)
    driver.down(found, address, stream)
    assert (found == -1).all()
    for again in (rows, np.empty(0, np.uint8)):
        try:
            _RegisteredMemory(again)
        except OSError as error:
            print(error)
        else:
            raise AssertionError("it should have been refused")
    for memory in held:
        memory.free()
    _RegisteredMemory(rows).free()


def our_cooperative_module() -> None:
    """`CooperativeModule`: what it finds, what fits, and what it refuses."""
    import contextlib

    from cir_infer.errors import DeviceError
    from cir_infer.gpu.cooperative import CooperativeModule

    driver = Driver().open()
    try:
        CooperativeModule(image(120), "the GPU", 65536, 4)
        raise AssertionError("there is no code for this GPU")
    except DeviceError as error:
        print(error)
    module = CooperativeModule(image(75), "the GPU", 65536, 4)
    kernel = module.function("encode_gru")
    assert kernel.most_blocks(64 << 10) == 4 and kernel.most_blocks((64 << 10) + 1) == 0
    assert kernel.most_blocks(1024) >= 8
    with contextlib.suppress(DeviceError):
        module.function("encode_rnn")
        raise AssertionError("there is no such kernel")
    driver.allocate(4)  # nothing is broken


def probe() -> None:
    from cir_infer.gpu.driver import missing_gpu

    print(missing_gpu())


def in_thread(act: Callable[[], object]) -> None:
    """Runs it in another thread, with its errors."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
