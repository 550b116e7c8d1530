"""What of a compose graph encodes the reference: it stays float32, where a graph of its own would not."""

from __future__ import annotations

from onnx import ModelProto

from cir_export.dependence import placed
from cir_export.precision.held import Held, size_of
from cir_infer.bundle import Bundle

__all__ = ["reference_in_compose"]

_WORTH = 10
"""Of a bundle's bytes one part in so many is told."""


def reference_in_compose(bundle: Bundle) -> int:
    """Bytes of weights that work on the reference alone, before any text, inside compose.

    0 where they are few, and where the bundle's images, or its references, are encoded by other graphs alone.
    """
    if not {"reference", "compose"} <= set(bundle.manifest.graphs):
        return 0  # the reference is a gallery row, which is encoded
    held = Held(bundle)
    size = _weights_of(held.graph("compose"), "reference")
    elsewhere = sum(size_of(tensor) for tensor in held.graph("reference").graph.initializer)
    return size if size > elsewhere and size * _WORTH >= bundle.path.stat().st_size else 0


def _weights_of(model: ModelProto, given: str) -> int:
    """Bytes of weights that nodes read which depend on one input and no other."""
    sizes = {tensor.name: size_of(tensor) for tensor in model.graph.initializer}
    found = {name for node in placed(model.graph) if node.on == {given} for name in node.weights}
    return sum(sizes[name] for name in found)
