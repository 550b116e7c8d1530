"""A loaded graph, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Graph", "Tensor"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; None stands for a length that may change from call to call."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Graph(Protocol):
    """A loaded graph. Implementations may be called from several threads."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs, in the graph's order."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs, in the graph's order."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name, for inputs by name (host arrays of the declared types).

        Raises:
            DeviceError: the device failed, e.g. out of memory.
        """
        ...
