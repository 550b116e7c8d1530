"""What the engine needs of a backend: load a graph, run a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cir_infer.runtime.chains import Chains
    from cir_infer.scoring.contract import Scorer

__all__ = ["Array", "Backend", "Graph", "Tensor"]

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


class Backend(Protocol):
    """A device with the library that runs graphs on it."""

    @property
    def device(self) -> str:
        """One of "cpu", "cuda" and "tensorrt"."""
        ...

    def load(self, name: str, model: bytes) -> Graph:
        """Make an ONNX model ready to run.

        Args:
            name: the graph's name, for messages and caches.
            model: the serialised ONNX model.

        Raises:
            BundleError: the model cannot be read.
            DeviceError: the device cannot run it.
        """
        ...

    def chains(self, graphs: Mapping[str, Graph], scorer: Scorer, names: tuple[str, ...]) -> Chains | None:
        """What answers single queries in one launch, None where graphs and scorer do not share a GPU.

        Args:
            graphs: those that this backend loaded.
            scorer: over the gallery.
            names: the terms' names.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Library, version, providers and options, as plain values."""
        ...
