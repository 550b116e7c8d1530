"""The compiled CUDA kernels: one fatbin for each folder of kernels/, with code for every architecture.

`make fatbin` writes them beside this file; so does an install that compiles them, or a wheel that has them.
"""

from __future__ import annotations

from pathlib import Path

import cir_infer.gpu
from cir_infer.errors import DeviceError

__all__ = ["RECURRENT", "SCORE", "compiled"]

SCORE = "kernels.fatbin"
"""Of kernels/score/cuda."""

RECURRENT = "recurrent.fatbin"
"""Of kernels/recurrent/cuda."""


def compiled(name: str) -> bytes:
    """The content of a fatbin.

    Raises:
        DeviceError: it was not compiled; the message says how to get it.
    """
    # An editable install has two folders of this package: the sources, and what was compiled.
    folders = [Path(folder) for folder in cir_infer.gpu.__path__]
    for folder in folders:
        if (folder / name).exists():
            return (folder / name).read_bytes()
    raise DeviceError(
        f"the CUDA kernels were not compiled when cir-infer was installed ({name} is missing); "
        "install again where nvcc is on the PATH, or run `make fatbin` in the sources there and copy the "
        f"file to {folders[0]}"
    )
