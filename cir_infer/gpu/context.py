"""PyCUDA behind `Device`: the primary context, the compiled kernels, memory and streams.

PyTorch, ONNX Runtime and TensorRT use the device's primary context as well, so memory and streams of theirs
and ours work together. Nothing is created at import, and `pycuda.autoinit` is never imported.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError
from cir_infer.extras import importing, install_hint
from cir_infer.gpu.cooperative import CooperativeFunction, CooperativeModule
from cir_infer.gpu.device import THREADS, Device, Stream
from cir_infer.gpu.driver import driver_error, driver_function, missing_gpu
from cir_infer.gpu.fatbins import RECURRENT, SCORE, compiled
from cir_infer.gpu.gate import Gate
from cir_infer.processes.collector import collector_paused
from cir_infer.processes.fork import finalize_here

__all__ = ["open_device", "open_gpu", "pycuda_stream"]

T = TypeVar("T")


@functools.cache
def open_gpu(ordinal: int = 0) -> _CudaDevice:
    """The GPU of that number for memory, streams and captures, opened once a process; no kernels are needed.

    Raises:
        DeviceError: no driver, no such GPU, PyCUDA missing, or a GPU that is too old.
    """
    reason = missing_gpu()  # PyCUDA answers a missing driver with an ImportError from its core
    if reason is not None:
        raise DeviceError(f"the GPU cannot be used: {reason}; use the CPU scorer or device='cpu'")
    with importing("PyCUDA", _broken_pycuda):
        import pycuda.driver as driver
    return _CudaDevice(driver, ordinal)


def _broken_pycuda(reason: str) -> DeviceError:
    advice = install_hint("pycuda")
    if "undefined symbol" in reason:
        advice = (
            "it was built for a newer CUDA than the driver's: update the driver, or build PyCUDA with "
            "the headers of the CUDA version that nvidia-smi shows (docs/gpu-check.md)"
        )
    return DeviceError(f"the GPU needs PyCUDA, which cannot be imported ({reason}); {advice}")


@functools.cache
def open_device(ordinal: int = 0) -> Device:
    """The GPU of that number with the kernels, opened once a process.

    Raises:
        DeviceError: as `open_gpu`, or the compiled kernels are missing or do not cover the GPU; the message
            says what to do.
    """
    device = open_gpu(ordinal)
    fatbin = compiled(SCORE)
    device.load_kernels(fatbin)
    return device


def _explained(
    what: str,
    driver: Any,
    act: Callable[[], T],
    advice: str = "if it persists, check the GPU with nvidia-smi",
) -> T:
    """Runs a call of PyCUDA and turns its errors into ours."""
    try:
        return act()
    except driver.MemoryError as error:
        raise DeviceError(
            f"{what}: the GPU is out of memory ({error}); free GPU memory or lower CudaScorer's memory"
        ) from error
    except driver.Error as error:
        raise DeviceError(f"{what}: {error}; {advice}") from error


class _DeviceMemory:
    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation
        self.address = int(allocation)

    def free(self) -> None:
        self._allocation.free()


class _HostMemory:
    """Page-locked memory of PyCUDA's."""

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self.array = array
        allocation: Any = array.base
        self._allocation = allocation
        self.address = int(allocation.get_device_pointer())

    def free(self) -> None:
        # Views of the array may live on in what is being closed; nothing touches them any more.
        self._allocation.free()


class _RegisteredMemory:
    """The caller's memory, page-locked in place.

    PyCUDA's `register_host_memory` crashes with NumPy 2 (it sets an array's base twice), so the driver
    itself is asked.
    """

    _PORTABLE, _DEVICEMAP, _READ_ONLY = 1, 2, 8

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._start = ctypes.c_void_p(array.ctypes.data)
        flags = self._PORTABLE | self._DEVICEMAP | (0 if array.flags.writeable else self._READ_ONLY)
        address = ctypes.c_uint64()
        status = self._driver.cuMemHostRegister_v2(self._start, ctypes.c_size_t(array.nbytes), flags)
        if status != 0:
            raise OSError(status, "the driver does not map this memory")
        status = self._driver.cuMemHostGetDevicePointer_v2(ctypes.byref(address), self._start, 0)
        if status != 0:
            self.free()
            raise OSError(status, "the driver has no address for this memory")
        self.array = array.reshape(-1).view(np.uint8)  # also keeps it alive
        self.address = address.value

    def free(self) -> None:
        self._driver.cuMemHostUnregister(self._start)


class _CapturedGraph:
    """A CUDA graph; a `Replay`. PyCUDA has no names for these functions, so the driver itself is asked."""

    _THREAD_LOCAL = 1
    """What other threads do meanwhile, such as allocating, does not break the capture."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        with collector_paused():
            self._ask("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(self._THREAD_LOCAL))
            try:
                enqueue()
            except BaseException:
                self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
                if graph:
                    self._driver.cuGraphDestroy(graph)
                raise
            self._ask("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._ask(
                "cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0)
            )
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        self._ask("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()

    def _ask(self, function: str, *arguments: Any) -> None:
        status = driver_function(self._driver, function)(*arguments)
        if status != 0:
            raise DeviceError(f"a CUDA graph failed: {driver_error(self._driver, function, status)}")


class _Stream:
    """A stream on loan, which goes back to its device and is lent again.

    PyCUDA destroys one only in the thread that opened the GPU; in others it leaves it behind with a warning.
    """

    plain: Any

    def __init__(self, driver: Any, idle: list[Any]) -> None:
        self._idle = idle
        with contextlib.suppress(IndexError):
            self.plain = idle.pop()
            return
        # CU_STREAM_NON_BLOCKING: the legacy default stream does not hold it up.
        self.plain = driver.Stream(1)

    @property
    def handle(self) -> int:
        """The driver's own."""
        return int(self.plain.handle)

    def __del__(self) -> None:
        if hasattr(self, "plain"):
            self._idle.append(self.plain)


def pycuda_stream(stream: Stream) -> Any:
    """What PyCUDA takes for a stream: its own, or None for the legacy default stream."""
    return stream.plain if isinstance(stream, _Stream) else stream


def _leave(context: Any, held: list[Any]) -> None:
    """Drops what needs the context, then the context: PyCUDA's own end of it warns about primary contexts."""
    context.push()  # PyCUDA lets go of modules and streams in another thread only where it is current
    for kept in held:
        if isinstance(kept, (list, dict)):
            kept.clear()
    held.clear()
    context.detach()


class _CudaDevice:
    """One GPU through PyCUDA; a `Device`. Get it from `open_device` or `open_gpu`."""

    def __init__(self, driver: Any, ordinal: int) -> None:
        self._driver = driver
        opening = "opening the GPU"
        _explained(opening, driver, driver.init)
        if not 0 <= ordinal < driver.Device.count():
            raise DeviceError(
                f"GPU {ordinal} was asked for; this machine has {driver.Device.count()}, counted from 0"
            )
        gpu = driver.Device(ordinal)
        attribute = driver.device_attribute
        self.name = str(gpu.name())
        major, minor = gpu.compute_capability()
        self.architecture = 10 * major + minor
        self.multiprocessors = int(gpu.get_attribute(attribute.MULTIPROCESSOR_COUNT))
        self.shared_bytes = int(gpu.get_attribute(attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN))
        self.integrated = bool(gpu.get_attribute(attribute.INTEGRATED))
        if self.architecture < 75:
            raise DeviceError(
                f"{self.name} has compute capability {major}.{minor}; the kernels need 7.5 (Turing) or "
                "later, use the CPU scorer"
            )
        self._context = _explained(opening, driver, gpu.retain_primary_context)
        self._functions: dict[str, Any] = {}
        self._cooperative: CooperativeModule | None = None
        self._idle: list[Any] = []
        self._held: list[Any] = [self._functions, self._idle]
        # Finalizers run newest first at exit: every scorer and plan has let go by then.
        self._gate = Gate()
        finalize_here(self, _leave, self._context, self._held)
        atexit.register(self._gate.close)  # after the first finalizer, so that it runs before all of them

    def load_kernels(self, fatbin: bytes) -> None:
        """Make the compiled kernels of a fatbin ready for `launch`."""
        major, minor = divmod(self.architecture, 10)
        with self.active():
            module = _explained(
                f"loading the kernels for {self.name} (compute capability {major}.{minor})",
                self._driver,
                lambda: self._driver.module_from_buffer(fatbin),
                "compile them here, or with the CUDA version that nvidia-smi shows, by `make fatbin`",
            )
        self._held.append(module)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._gate.enter()
        try:
            self._context.push()
            try:
                yield
            finally:
                self._driver.Context.pop()
        except self._driver.Error as error:
            raise DeviceError(f"{self.name} failed: {error}; check the GPU with nvidia-smi") from error
        finally:
            self._gate.leave()

    def free_bytes(self) -> int:
        free, _ = self._driver.mem_get_info()
        return int(free)

    def allocate(self, nbytes: int) -> _DeviceMemory:
        return _DeviceMemory(
            _explained(
                f"allocating {nbytes} bytes on {self.name}",
                self._driver,
                lambda: self._driver.mem_alloc(nbytes),
            )
        )

    def allocate_host(self, nbytes: int) -> _HostMemory:
        flags = self._driver.host_alloc_flags.DEVICEMAP | self._driver.host_alloc_flags.PORTABLE
        array = _explained(
            f"allocating {nbytes} bytes of page-locked host memory",
            self._driver,
            lambda: self._driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags),
        )
        return _HostMemory(array)

    def map_host(self, array: npt.NDArray[Any]) -> _RegisteredMemory | None:
        try:
            return _RegisteredMemory(array)
        except OSError:
            return None  # file mappings, on some drivers; the caller copies

    def new_stream(self) -> Stream:
        return _Stream(self._driver, self._idle)

    def upload(self, address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        self._driver.memcpy_htod_async(address, array, pycuda_stream(stream))

    def download(self, array: npt.NDArray[Any], address: int, stream: Stream) -> None:
        self._driver.memcpy_dtoh_async(array, address, pycuda_stream(stream))
        self.synchronize(stream)

    def zero(self, address: int, nbytes: int, stream: Stream) -> None:
        self._driver.memset_d8_async(address, 0, nbytes, pycuda_stream(stream))

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        shared_bytes: int,
        arguments: ctypes.Structure,
        stream: Stream,
    ) -> None:
        function = self._functions.get(kernel)
        if function is None:
            function = self._held[-1].get_function(kernel)
            function.prepare([f"{ctypes.sizeof(arguments)}s"])
            function.set_attribute(
                self._driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, self.shared_bytes
            )
            self._functions[kernel] = function
        function.prepared_async_call(
            grid, (THREADS, 1, 1), pycuda_stream(stream), bytes(arguments), shared_size=shared_bytes
        )

    def cooperative(self, kernel: str) -> CooperativeFunction:
        if self._cooperative is None:
            fatbin = compiled(RECURRENT)
            self._cooperative = CooperativeModule(fatbin, self.name, self.shared_bytes, self.multiprocessors)
        return self._cooperative.function(kernel)

    def handle(self, stream: Stream) -> int:
        return 0 if stream is None else int(stream.handle)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> _CapturedGraph:
        try:
            return _CapturedGraph(self.handle(stream), enqueue)
        except self._driver.Error as error:
            raise DeviceError(f"a CUDA graph failed: {error}") from error

    def record(self, stream: Stream) -> Any:
        event = self._driver.Event(self._driver.event_flags.DISABLE_TIMING)
        event.record(pycuda_stream(stream))
        return event

    def wait(self, stream: Stream, event: Any) -> None:
        pycuda_stream(stream).wait_for_event(event)

    def synchronize(self, stream: Stream) -> None:
        if stream is None:
            self._driver.Context.synchronize()
        else:
            pycuda_stream(stream).synchronize()
