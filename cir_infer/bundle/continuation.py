"""A graph and what goes on from it, kept as two files, as one model.

`explain.onnx` of a bundle holds only what explanations add to the image graph: nodes that read the image
graph's values and weights by name, and further outputs. Put together, a graph's fields follow one another:
nodes, constants and outputs of the first, then those of the second. That is what protocol buffers make of a
message that is written in two pieces, so nothing has to be understood for it.
"""

from __future__ import annotations

from cir_infer.bundle.initializers import GRAPH
from cir_infer.bundle.onnx_model import model_fields
from cir_infer.bundle.wire import field, field_head

__all__ = ["continued"]


def continued(model: bytes, rest: bytes) -> bytes:
    """The serialised model that goes on as another one says.

    Args:
        model: a whole model.
        rest: a model whose graph reads values of the first by their names; its other fields are left out.

    Raises:
        BundleError: one of them is cut short, or no ONNX model.
    """
    (graph,) = [value for number, value in model_fields(model) if number == GRAPH]
    (further,) = [value for number, value in model_fields(rest) if number == GRAPH]
    others = b"".join(field(number, value) for number, value in model_fields(model) if number != GRAPH)
    return others + field_head(GRAPH, len(graph) + len(further)) + bytes(graph) + bytes(further)
