# The compiled module of kernels/resample/binding.cpp. resampling.py checks sizes first.
from typing import Any

import numpy as np
import numpy.typing as npt

_Pixels = npt.NDArray[np.uint8]
_Four = tuple[int, int, int, int]
_Box = tuple[float, float, float, float]

def resize_square(
    pixels: _Pixels,
    border: _Four,
    fill: int,
    box: _Box,
    size: int,
    margin: int,
    cubic: bool,
    instruction_set: str,
) -> _Pixels: ...
def resize_square_of_arrow(
    array: Any,
    width: int,
    height: int,
    border: _Four,
    fill: int,
    box: _Box,
    size: int,
    margin: int,
    cubic: bool,
    instruction_set: str,
) -> _Pixels: ...
