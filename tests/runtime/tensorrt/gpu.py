"""The emulated GPU of tests/emulation with streams that can be captured, for plans and kernels together."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.emulation.emulated import EmulatedDevice

HANDLE = 7


class CapturedWork:
    """What a capture recorded, in order."""

    def __init__(self, steps: list[Callable[[], object]]) -> None:
        self.steps = steps
        self.launches = 0
        self.closed = False

    def launch(self) -> None:
        assert not self.closed, "a closed graph was launched"
        self.launches += 1
        for step in self.steps:
            step()

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self.steps = []


def counted(device: Any, memory: Any, nbytes: int) -> Any:
    """Memory that a device's `live_bytes` and `allocations` know of."""
    device.live_bytes += nbytes
    device.allocations += 1
    free = memory.free

    def given_back() -> None:
        device.live_bytes -= nbytes
        free()

    memory.free = given_back
    return memory


class CapturingDevice(EmulatedDevice):
    """Counts what is allocated, and records uploads, kernels and plans while it captures."""

    def __init__(self, capturable: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.live_bytes = 0
        self.allocations = 0
        self.captured: list[CapturedWork] = []
        self._capturable = capturable
        self._steps: list[Callable[[], object]] | None = None

    def handle(self, stream: object) -> int:
        return HANDLE

    def capture(self, stream: object, enqueue: Callable[[], None]) -> CapturedWork:
        from cir_infer.errors import DeviceError

        if not self._capturable:
            raise DeviceError("a CUDA graph failed: cuStreamEndCapture answered error 901 of the driver")
        self._steps = sys.modules["tensorrt"].recording = []
        try:
            enqueue()
        finally:
            steps, self._steps = self._steps, None
            sys.modules["tensorrt"].recording = None
        self.captured.append(CapturedWork(steps))
        return self.captured[-1]

    def allocate(self, nbytes: int) -> Any:
        assert self._steps is None, "memory is not allocated within a capture"
        return counted(self, super().allocate(nbytes), nbytes)

    def upload(self, address: int, array: Any, stream: object) -> None:
        if self._steps is None:
            super().upload(address, array, stream)
            return
        # A captured copy reads the source's memory at each launch.
        source = np.ascontiguousarray(array)
        assert source.ctypes.data == array.ctypes.data
        self._steps.append(lambda: EmulatedDevice.upload(self, address, source, stream))

    def launch(
        self, kernel: str, grid: Any, shared_bytes: int, arguments: ctypes.Structure, stream: object
    ) -> None:
        if self._steps is None:
            super().launch(kernel, grid, shared_bytes, arguments, stream)
            return
        copied = type(arguments).from_buffer_copy(arguments)
        self._steps.append(lambda: EmulatedDevice.launch(self, kernel, grid, shared_bytes, copied, stream))

    def synchronize(self, stream: object) -> None:
        assert self._steps is None, "a capture cannot be waited for"
