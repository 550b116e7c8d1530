"""Weights that a graph would transpose each time it runs are stored transposed.

PyTorch's exporter does so itself, but not where a large weight is read twice, as by a layer and by what
explains it. Behind a Transpose it is no constant to what lowers products with constant weights.
"""

from __future__ import annotations

import numpy as np
from onnx_ir import Graph, Node, Value, tensor

__all__ = ["turn_weights"]


def turn_weights(graph: Graph) -> None:
    """Transposes constants of which every reader asks for the same, in place."""
    for constant in list(graph.initializers.values()):
        readers = list(dict.fromkeys(constant.consumers()))
        ways = {_way(node) for node in readers}
        if len(ways) != 1 or None in ways or constant.const_value is None:
            continue
        turned = [node.outputs[0] for node in readers]
        if constant.is_graph_output() or any(value.is_graph_output() for value in turned):
            continue
        (way,) = ways
        # A view, whose bytes are put in order when they are written.
        values = np.transpose(constant.const_value.numpy(), way or None)
        first = turned[0]
        stored = Value(
            name=first.name,
            type=constant.type,
            shape=None if first.shape is None else first.shape.copy(),
            const_value=tensor(values, dtype=constant.const_value.dtype, name=first.name),
        )
        for value in turned:
            value.replace_all_uses_with(stored)
        graph.remove(readers, safe=True)
        del graph.initializers[constant.name or ""]
        graph.initializers.add(stored)


def _way(node: Node) -> tuple[int, ...] | None:
    """The axes of a transposition, () where they are reversed; None for another operator."""
    if node.op_type != "Transpose" or node.domain:
        return None
    axes = node.attributes.get_ints("perm")
    return () if axes is None else tuple(axes)
