"""What the engine needs of a backend: load a graph, answer queries where it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cir_infer.bundle.model import Model
from cir_infer.runtime.chains import Chains
from cir_infer.runtime.graph import Graph
from cir_infer.scoring.contract import Scorer

__all__ = ["Backend"]


class Backend(Protocol):
    """A device with the library that runs graphs on it."""

    @property
    def device(self) -> str:
        """Its name, one of `device_names.DEVICES`."""
        ...

    def load(self, name: str, model: Model) -> Graph:
        """Make an ONNX model ready to run.

        Args:
            name: the graph's name, for messages and caches.
            model: the ONNX model with its weights.

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
