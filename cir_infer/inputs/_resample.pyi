# The compiled module of kernels/resample/binding.cpp. resampling.py checks sizes first.
from typing import Any

import numpy as np
import numpy.typing as npt

_Pixels = npt.NDArray[np.uint8]
_Four = tuple[int, int, int, int]
_Box = tuple[float, float, float, float]

WOVEN: int

class Resized:
    def __init__(
        self,
        picture: tuple[int, int],
        border: _Four,
        fill: int,
        box: _Box,
        size: tuple[int, int],
        asked: _Four,
        cubic: bool,
        instruction_set: str,
    ) -> None: ...
    def feed_pixels(self, pixels: _Pixels) -> None: ...
    def feed_arrow(self, array: Any, rows: int) -> None: ...
    def taken(self) -> _Pixels: ...
