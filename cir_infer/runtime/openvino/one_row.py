"""A graph in two forms: one that takes one row at a time, and one that takes any number.

Where OpenVINO knows every shape it does not work it out again for each operator of each run: a single picture
takes 0.92 to 0.97 of the time. Batches keep the form of any number, whose weights are read once for them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cir_infer.errors import BundleError, DeviceError
from cir_infer.processes.turns import Turn
from cir_infer.runtime.graph import Array, Graph

__all__ = ["OneOrMany", "is_apart"]

_PICTURES = ("image", "reference")
"""Graphs that read pictures alone."""

_PRECISIONS = ("int8", "bfloat16")
"""Of bundles where it pays: in float32 it is 0.97, for the weights once more."""


def is_apart(device: str, precision: str, name: str) -> bool:
    """Whether a graph has a form of its own for one row: on a processor, in the precisions where it pays."""
    return device == "openvino" and precision in _PRECISIONS and name in _PICTURES


class OneOrMany:
    """A graph, a `Graph`, in two forms. Threads may share one.

    Args:
        name: of the graph.
        one: the form for one row at a time, and for none.
        many: opens the form for any number, when a batch first asks for it.
    """

    def __init__(self, name: str, one: Graph, many: Callable[[], Graph]) -> None:
        self._name, self._one, self._open = name, one, many
        self._many: Graph | None = None
        self._turn = Turn()
        self.inputs, self.outputs = one.inputs, one.outputs

    def open_both(self) -> Graph:
        """Open the form for any number now, and give it.

        Raises:
            DeviceError: it cannot be opened (now).
        """
        if self._many is None:
            self._turn.take(self._opened)
        assert self._many is not None
        return self._many

    def _opened(self) -> None:
        if self._many is None:
            try:
                self._many = self._open()
            except BundleError as error:  # as where the bundle was replaced
                raise DeviceError(
                    f"the {self._name} graph cannot be opened for batches now: {error}"
                ) from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`."""
        rows = len(next(iter(feeds.values()), ()))
        return (self._one if rows <= 1 else self.open_both()).run(feeds)
