"""Whether there is an NVIDIA GPU, asked of its driver."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["missing_gpu"]


@functools.cache
def missing_gpu() -> str | None:
    """Why there is no usable NVIDIA GPU, or None where there is one.

    Asks the driver library itself: the libraries above it answer a missing driver with anything from
    an empty list to a segmentation fault.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver does not start (error {status}); see nvidia-smi"
    return None if count.value else "the NVIDIA driver sees no GPU"
