# The compiled module of kernels/score/binding.cpp. Arrays are C-contiguous; cpu.py checks all else.
from typing import Any

import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_Answer = tuple[_F32, npt.NDArray[np.int64], _F32]

source_hash: str

class Gallery:
    def __init__(self, blocks: list[npt.NDArray[Any]], scales: list[_F32]) -> None: ...

class Int8Index:
    def __init__(self, gallery: Gallery, threads: int, instruction_set: str) -> None: ...
    def topk(
        self,
        numerators: _F32,
        weights: _F32 | None,
        k: int,
        allow: npt.NDArray[np.uint8] | None,
        threads: int,
        instruction_set: str,
        list: int,
    ) -> _Answer: ...
    def statistics(self) -> tuple[int, int, int, int]: ...
    def upper_bounds(
        self,
        numerators: _F32,
        weights: _F32 | None,
        instruction_set: str,
        digits: int,
        closer: bool,
        shares: list[float],
    ) -> _F32: ...
    def bytes(self) -> int: ...

def topk(
    gallery: Gallery,
    numerators: _F32,
    weights: _F32 | None,
    k: int,
    allow: npt.NDArray[np.uint8] | None,
    threads: int,
    instruction_set: str,
) -> _Answer: ...
def read_all(gallery: Gallery, threads: int, instruction_set: str) -> int: ...
def instruction_sets() -> list[str]: ...
