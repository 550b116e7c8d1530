"""Builds the driver whose GPU is the machine of the folder above, and runs Python on it."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.emulation.emulated import (
    BUILD,
    KERNELS,
    RECURRENT,
    ROOT,
    Unit,
    compiled,
    kernel_unit,
    link,
    machine_units,
)

HERE = Path(__file__).parent


@functools.cache
def build_driver() -> Path:
    """The folder that holds libcuda.so.1, for LD_LIBRARY_PATH."""
    headers = sorted(HERE.glob("*.h"))
    units = [kernel_unit(False, KERNELS), kernel_unit(False, RECURRENT), *machine_units(False)]
    units += [
        Unit(BUILD, source, ["-std=c++17", "-fPIC", "-O1", "-Wall"], headers)
        for source in sorted(HERE.glob("*.cpp"))
    ]
    objects = compiled(units)
    digest = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
    library = BUILD / f"driver-{digest}" / "libcuda.so.1"
    if not library.exists():
        link(library, objects, "-Wl,-soname,libcuda.so.1", "-ldl")
    return library.parent


def environment(driver: Path | None, **settings: str | int) -> dict[str, str]:
    """What a process needs to find a driver (None: to find none), with settings of gpu.h.

    Args:
        driver: what `build_driver` gave.
        settings: e.g. `gpu="sm_87"` for $CIR_EMULATED_GPU.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CIR_EMULATED_")}
    paths = [str(ROOT), kept.get("PYTHONPATH", "")]
    made = {**kept, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if driver is not None:
        made["LD_LIBRARY_PATH"] = os.pathsep.join([str(driver), kept.get("LD_LIBRARY_PATH", "")])
    return {**made, **{f"CIR_EMULATED_{name.upper()}": str(value) for name, value in settings.items()}}


def run_program(
    module: str, *arguments: str, driver: Path | None, **settings: str | int
) -> subprocess.CompletedProcess[str]:
    """Run a Python module in a process of its own, on a driver."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command,
        env=environment(driver, **settings),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
