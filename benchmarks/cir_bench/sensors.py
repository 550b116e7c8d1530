"""What the machine does while it is measured: clocks, temperature, energy, throttling, neighbours.

Sources are read where they exist: NVML for discrete GPUs, the INA3221 power monitor and thermal zones of
a Jetson, Intel's RAPL counters, Linux's own accounting. A source that a machine lacks is left out.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from cir_infer.machine.nvml import Nvml

__all__ = ["Reading", "Sensors", "read_sensors", "summarise_readings"]

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Reading:
    """One look at the sensors.

    Attributes:
        seconds: on the monotonic clock.
        mhz: clocks by name ("cpu", "gpu").
        celsius: temperatures by name.
        watts: power by rail, where it is given as power.
        joules: energy counters by name, where it is given as a counter.
        throttling: reasons for lowered clocks.
        busy_seconds: processor time of all processes so far.
        stolen_seconds: processor time that the hypervisor gave to others so far.
        own_seconds: processor time of this process so far.
        device_bytes: GPU memory in use.
    """

    seconds: float
    mhz: dict[str, float] = field(default_factory=dict)
    celsius: dict[str, float] = field(default_factory=dict)
    watts: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    throttling: tuple[str, ...] = ()
    busy_seconds: float = 0.0
    stolen_seconds: float = 0.0
    own_seconds: float = 0.0
    device_bytes: int | None = None


def read_sensors(root: Path = Path("/"), gpu: Nvml | None = None) -> Reading:
    """Read everything once.

    Args:
        root: where /proc and /sys are looked up.
        gpu: the GPU that is measured, if any.
    """
    busy, stolen = _processor_seconds(root)
    mhz, celsius = _cpu_mhz(root), _zones(root)
    watts, joules = _rails(root), _rapl(root)
    throttling: list[str] = []
    if gpu is not None:
        for into, name, value in (
            (mhz, "gpu", gpu.sm_mhz()),
            (celsius, "gpu", gpu.celsius()),
            (watts, "gpu", gpu.watts()),
            (joules, "gpu", gpu.joules()),
        ):
            if value is not None:
                into[name] = float(value)
        throttling += gpu.throttling()
    return Reading(
        seconds=time.monotonic(),
        mhz=mhz,
        celsius=celsius,
        watts=watts,
        joules=joules,
        throttling=tuple(throttling),
        busy_seconds=busy,
        stolen_seconds=stolen,
        own_seconds=time.process_time(),
        device_bytes=None if gpu is None else gpu.used_bytes(),
    )


class Sensors:
    """Reads the sensors from a thread of its own while a `with` block runs.

    Args:
        gpu: the GPU that is measured, if any.
        period: seconds between readings.
        root: where /proc and /sys are looked up.

    Attributes:
        readings: in order; the first and the last belong to the block's start and end.
    """

    def __init__(self, gpu: Nvml | None = None, period: float = 0.2, root: Path = Path("/")) -> None:
        self.readings: list[Reading] = []
        self._gpu = gpu
        self._period = period
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cir-bench-sensors", daemon=True)

    def __enter__(self) -> Sensors:
        self.readings.append(read_sensors(self._root, self._gpu))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.readings.append(read_sensors(self._root, self._gpu))

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            self.readings.append(read_sensors(self._root, self._gpu))


def summarise_readings(readings: list[Reading]) -> dict[str, Any]:
    """Clocks, temperatures, energy and neighbours of a run, as plain values.

    Energy comes from a counter where there is one and else from power over time (trapezoids). "others"
    is the processor time of other processes, in cores; "stolen" what the hypervisor withheld.
    """
    first, last = readings[0], readings[-1]
    span = max(last.seconds - first.seconds, 1e-9)
    own = last.own_seconds - first.own_seconds
    summary: dict[str, Any] = {
        "seconds": span,
        "own_cores": own / span,
        "others_cores": max(0.0, (last.busy_seconds - first.busy_seconds - own) / span),
        "stolen_cores": (last.stolen_seconds - first.stolen_seconds) / span,
        "throttling": sorted({reason for reading in readings for reason in reading.throttling}),
        "mhz": _ranges([reading.mhz for reading in readings]),
        "celsius": _ranges([reading.celsius for reading in readings]),
        "watts": {name: joules / span for name, joules in _energy(readings).items()},
        "joules": _energy(readings),
    }
    device = [reading.device_bytes for reading in readings if reading.device_bytes is not None]
    if device:
        summary["peak_device_bytes"] = max(device)
    return summary


def _ranges(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    names = sorted({name for each in values for name in each})
    known = {name: [each[name] for each in values if name in each] for name in names}
    return {name: {"min": min(found), "max": max(found)} for name, found in known.items()}


def _energy(readings: list[Reading]) -> dict[str, float]:
    """Joules by source between the first and the last reading."""
    first, last = readings[0], readings[-1]
    energy = {
        name: last.joules[name] - start
        for name, start in first.joules.items()
        if last.joules.get(name, -1.0) >= start  # a counter that wrapped says nothing
    }
    for name in first.watts:
        if name in energy or any(name not in reading.watts for reading in readings):
            continue
        energy[name] = sum(
            (b.seconds - a.seconds) * (a.watts[name] + b.watts[name]) / 2
            for a, b in itertools.pairwise(readings)
        )
    return energy


def _processor_seconds(root: Path) -> tuple[float, float]:
    """(busy, stolen) seconds since boot, summed over cores."""
    fields = _text(root / "proc/stat").split("\n", 1)[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(value) for value in fields[1:9])
    return (user + nice + system + irq + softirq) / _TICKS, steal / _TICKS


def _cpu_mhz(root: Path) -> dict[str, float]:
    kilohertz = [
        int(text)
        for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if (text := _text(path).strip()).isdigit()
    ]
    found = {"cpu": sum(kilohertz) / len(kilohertz) / 1000} if kilohertz else {}
    if not found:
        megahertz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo"), re.MULTILINE)
        if megahertz:
            found = {"cpu": sum(map(float, megahertz)) / len(megahertz)}
    # A Jetson's integrated GPU: devfreq, in hertz.
    for path in sorted((root / "sys/class/devfreq").glob("*gpu*/cur_freq")) or sorted(
        (root / "sys/class/devfreq").glob("*g[av]*b/cur_freq")
    ):
        if (text := _text(path).strip()).isdigit():
            found["gpu"] = int(text) / 1e6
    return found


def _zones(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text = _text(zone / "temp").strip()
        if text.lstrip("-").isdigit() and int(text) > 0:
            found[_text(zone / "type").strip() or zone.name] = int(text) / 1000
    return found


def _rails(root: Path) -> dict[str, float]:
    """Watts by rail of a Jetson's INA3221: in* is millivolt, curr* milliampere, both with one label."""
    found = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(monitor / "name").strip() != "ina3221":
            continue
        for label in sorted(monitor.glob("in[0-9]*_label")):
            channel = label.name[len("in") : -len("_label")]
            volt = _text(monitor / f"in{channel}_input").strip()
            ampere = _text(monitor / f"curr{channel}_input").strip()
            if volt.isdigit() and ampere.isdigit():
                found[_text(label).strip()] = int(volt) * int(ampere) / 1e6
    return found


def _rapl(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]")):
        text = _text(zone / "energy_uj").strip()
        if text.isdigit():
            found[_text(zone / "name").strip() or zone.name] = int(text) / 1e6
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
