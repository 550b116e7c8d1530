"""Whether there is an NVIDIA GPU, asked of its driver."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, cast

from cir_infer.errors import DeviceError, shown

__all__ = ["driver_error", "driver_function", "missing_gpu"]

_NO_DEVICE = 100


@functools.cache
def missing_gpu() -> str | None:
    """Why there is no usable NVIDIA GPU, or None where there is one.

    Asks the driver library itself: the libraries above it answer a missing driver with anything from
    an empty list to a segmentation fault.
    """
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError) as error:
        if str(error).startswith("libcuda.so.1: cannot open"):
            return "no NVIDIA driver (libcuda.so.1) on this machine"
        return f"the NVIDIA driver's library cannot be used ({shown(error)}); install the driver again"
    if status not in (0, _NO_DEVICE):
        return f"the NVIDIA driver does not start (error {status}); see nvidia-smi"
    return None if status == 0 and count.value else "the NVIDIA driver sees no GPU"


def driver_function(driver: Any, name: str) -> Callable[..., int]:
    """A function of the driver library, by its name.

    Raises:
        DeviceError: the driver is older than it.
    """
    try:
        return cast(Callable[..., int], getattr(driver, name))
    except AttributeError as error:
        raise DeviceError(f"the NVIDIA driver is too old: it has no {name}; update it") from error


def driver_error(driver: Any, function: str, status: int) -> str:
    """What the driver library says of an answer of one of its functions, for a message."""
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    said = "" if text.value is None else f" ({text.value.decode(errors='replace')})"
    return f"{function} answered error {status} of the driver{said}"
