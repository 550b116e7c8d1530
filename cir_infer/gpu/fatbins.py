"""The compiled CUDA kernels: one fatbin for each folder of kernels/, with code for every architecture.

`make fatbin` writes them beside this file; so does an install that compiles them, or a wheel that has them.
"""

from __future__ import annotations

from pathlib import Path

import cir_infer.gpu
from cir_infer.errors import DeviceError

__all__ = ["RECURRENT", "SCORE", "compiled", "place_of"]

SCORE = "kernels.fatbin"
"""Of kernels/score/cuda."""

RECURRENT = "recurrent.fatbin"
"""Of kernels/recurrent/cuda."""


def place_of(name: str) -> Path | None:
    """Where a fatbin lies; None where it was not compiled.

    An editable install has two folders of this package, the sources, where `make fatbin` writes, and what the
    install compiled. If both have one, the newest is of the kernels as they are.
    """
    found = [path for folder in cir_infer.gpu.__path__ if (path := Path(folder) / name).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def compiled(name: str) -> bytes:
    """The content of a fatbin.

    Raises:
        DeviceError: it was not compiled; the message says how to get it.
    """
    place = place_of(name)
    if place is None:
        raise DeviceError(
            f"the CUDA kernels were not compiled when cir-infer was installed ({name} is missing); "
            "install again where nvcc is on the PATH, or run `make fatbin` in the sources there and copy the "
            f"file to {Path(cir_infer.gpu.__path__[0])}"
        )
    return place.read_bytes()
