"""NVIDIA's management library through ctypes: names, clocks, temperature, energy, throttling.

Nothing here starts a CUDA context or changes a setting. Where there is no driver there are no devices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

__all__ = ["Nvml"]

_GRAPHICS_CLOCK, _MEMORY_CLOCK = 0, 2
_GPU_TEMPERATURE = 0
# Reasons for lower clocks that spoil a measurement; idling and application settings do not.
_THROTTLE = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class Nvml:
    """One GPU of the machine.

    Args:
        library: the loaded library, initialised.
        handle: the device's handle.
    """

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle

    @staticmethod
    def open(index: int = 0, path: str = "libnvidia-ml.so.1") -> Nvml | None:
        """A GPU by its number, or None where there is no driver or no such GPU."""
        handle = ctypes.c_void_p()
        try:
            library = ctypes.CDLL(path)
            if library.nvmlInit_v2() != 0:
                return None
            if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
                return None
        except (OSError, AttributeError):  # none, or another library under its name
            return None
        return Nvml(library, handle)

    @staticmethod
    def devices(path: str = "libnvidia-ml.so.1") -> list[dict[str, Any]]:
        """Every GPU's name, driver, memory and limits, as plain values."""
        found: list[dict[str, Any]] = []
        while (device := Nvml.open(len(found), path)) is not None:
            found.append(device.describe())
        return found

    def describe(self) -> dict[str, Any]:
        """Name, driver, memory, highest clocks and power limit."""
        memory = _Memory()
        has_memory = self._ask("nvmlDeviceGetMemoryInfo", memory)
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "name": self._string(lambda text, n: self._call("nvmlDeviceGetName", text, n)),
            "driver": self._string(self._driver_version),
            "memory_bytes": memory.total if has_memory else None,
            "max_sm_mhz": self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_int(_GRAPHICS_CLOCK)),
            "max_memory_mhz": self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_int(_MEMORY_CLOCK)),
            "power_limit_watt": None if limit is None else limit / 1000,
        }

    def sm_mhz(self) -> int | None:
        """The clock of the multiprocessors now."""
        return self._number("nvmlDeviceGetClockInfo", ctypes.c_int(_GRAPHICS_CLOCK))

    def celsius(self) -> int | None:
        """The temperature of the chip now."""
        return self._number("nvmlDeviceGetTemperature", ctypes.c_int(_GPU_TEMPERATURE))

    def watts(self) -> float | None:
        """The power drawn now (on recent chips: the mean of a short while)."""
        milliwatt = self._number("nvmlDeviceGetPowerUsage")
        return None if milliwatt is None else milliwatt / 1000

    def joules(self) -> float | None:
        """The energy drawn since the driver was loaded; None before Volta."""
        total = ctypes.c_ulonglong()
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption", total)
        return total.value / 1000 if found else None

    def used_bytes(self) -> int | None:
        """Device memory in use, by everyone."""
        memory = _Memory()
        return int(memory.used) if self._ask("nvmlDeviceGetMemoryInfo", memory) else None

    def throttling(self) -> list[str]:
        """Why the clocks are held down now; empty when they are not."""
        reasons = ctypes.c_ulonglong()
        if not self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", reasons):
            return []
        return [name for bit, name in _THROTTLE.items() if reasons.value & bit]

    def _driver_version(self, text: Any, length: ctypes.c_uint) -> bool:
        entry = getattr(self._library, "nvmlSystemGetDriverVersion", None)
        return entry is not None and entry(text, length) == 0

    def _number(self, function: str, *arguments: Any) -> int | None:
        value = ctypes.c_uint()
        return int(value.value) if self._call(function, *arguments, ctypes.byref(value)) else None

    def _ask(self, function: str, into: Any) -> bool:
        return self._call(function, ctypes.byref(into))

    def _call(self, function: str, *arguments: Any) -> bool:
        # Old drivers lack newer functions, and small chips answer "not supported" to many.
        entry = getattr(self._library, function, None)
        return entry is not None and entry(self._handle, *arguments) == 0

    @staticmethod
    def _string(ask: Callable[[Any, ctypes.c_uint], bool]) -> str | None:
        text = ctypes.create_string_buffer(96)
        return text.value.decode(errors="replace") if ask(text, ctypes.c_uint(len(text))) else None
