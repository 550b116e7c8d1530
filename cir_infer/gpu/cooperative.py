"""Cooperative launches, for which PyCUDA has no names: the driver itself is asked, in the current context.

The driver starts such a kernel only if all its blocks fit the GPU at once, and keeps two of them from waiting
for each other's place; blocks that wait for one another after an ordinary launch may wait for ever.
"""

from __future__ import annotations

import ctypes
import hashlib
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p
from typing import Any

from cir_infer.errors import DeviceError
from cir_infer.gpu.device import THREADS, Stream
from cir_infer.gpu.driver import driver_error, driver_function

__all__ = ["CooperativeFunction", "CooperativeModule"]

_COOPERATIVE_LAUNCH = 95  # CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...


class CooperativeModule:
    """Compiled kernels, loaded into the current context, with which they end.

    Args:
        fatbin: the kernels for all architectures.
        gpu: the GPU's name, for messages.
        shared_bytes: most shared memory of a block.
        multiprocessors: of the GPU.

    Raises:
        DeviceError: the GPU has no cooperative launches, or the fatbin no code for it.
    """

    def __init__(self, fatbin: bytes, gpu: str, shared_bytes: int, multiprocessors: int) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self.version = hashlib.sha256(fatbin).hexdigest()[:16]
        self.gpu = gpu
        self.shared_bytes = shared_bytes
        self.multiprocessors = multiprocessors
        device, able = c_int(), c_int()
        self.ask("cuCtxGetDevice", byref(device))
        self.ask("cuDeviceGetAttribute", byref(able), c_int(_COOPERATIVE_LAUNCH), device)
        if not able.value:
            raise DeviceError(f"{gpu} has no cooperative launches, which the recurrent kernel needs")
        self._module = c_void_p()
        self.ask("cuModuleLoadData", byref(self._module), ctypes.c_char_p(fatbin))

    def function(self, name: str) -> CooperativeFunction:
        """One of the kernels."""
        function = c_void_p()
        self.ask("cuModuleGetFunction", byref(function), self._module, ctypes.c_char_p(name.encode()))
        self.ask(
            "cuFuncSetAttribute", function, c_int(_MAX_DYNAMIC_SHARED_SIZE_BYTES), c_int(self.shared_bytes)
        )
        return CooperativeFunction(self, function)

    def ask(self, function: str, *arguments: Any) -> None:
        """A call of the driver; raises `DeviceError` for any answer but 0."""
        status = driver_function(self._driver, function)(*arguments)
        if status != 0:
            raise DeviceError(
                f"the recurrent kernel cannot run on {self.gpu}: "
                f"{driver_error(self._driver, function, status)}"
            )


class CooperativeFunction:
    """A kernel; a `CooperativeKernel`. Get it from `CooperativeModule.function`."""

    def __init__(self, module: CooperativeModule, function: c_void_p) -> None:
        self._module = module
        self._function = function

    @property
    def version(self) -> str:
        """See `CooperativeKernel.version`."""
        return self._module.version

    def most_blocks(self, shared_bytes: int) -> int:
        """See `CooperativeKernel.most_blocks`."""
        if shared_bytes > self._module.shared_bytes:
            return 0
        each = c_int()
        self._module.ask(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            byref(each),
            self._function,
            c_int(THREADS),
            c_size_t(shared_bytes),
        )
        return each.value * self._module.multiprocessors

    def launch(
        self, grid: tuple[int, int], shared_bytes: int, arguments: ctypes.Structure, stream: Stream
    ) -> None:
        """See `CooperativeKernel.launch`."""
        parameters = (c_void_p * 1)(ctypes.addressof(arguments))  # the driver copies before it returns
        self._module.ask(
            "cuLaunchCooperativeKernel",
            self._function,
            *(c_uint(blocks) for blocks in (*grid, 1)),
            *(c_uint(threads) for threads in (THREADS, 1, 1)),
            c_uint(shared_bytes),
            c_void_p(0 if stream is None else int(stream.handle)),
            parameters,
        )
