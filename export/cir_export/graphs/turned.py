"""Weights that a graph would transpose or split each time it runs are stored so.

PyTorch's exporter stores them transposed itself, but not where a large weight is read twice, as by a layer
and by what explains it; and it splits none. Behind such a node they are no constants to what lowers products
with constant weights.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
from onnx_ir import Graph, Node, Value, tensor

__all__ = ["turn_weights"]

_ENDING = re.compile(r"([._](?:weight|bias))?$")
"""Of a weight's name, without which it is its layer's."""


def turn_weights(graph: Graph) -> None:
    """Transposes and splits constants of which every reader asks for the same, in place."""
    waiting = list(graph.initializers.values())
    while waiting:
        constant = waiting.pop()
        readers = list(dict.fromkeys(constant.consumers()))
        ways = {_way(node, constant) for node in readers}
        if len(ways) != 1 or None in ways or constant.const_value is None:
            continue
        outputs = [value for node in readers for value in node.outputs]
        if constant.is_graph_output() or any(value.is_graph_output() for value in outputs):
            continue
        made = _made(readers[0], constant.const_value.numpy())
        for number, values in enumerate(made):
            first = readers[0].outputs[number]
            name = first.name if len(made) == 1 else _ENDING.sub(rf".{number}\1", constant.name or "", 1)
            stored = Value(
                name=name,
                type=constant.type,
                shape=None if first.shape is None else first.shape.copy(),
                const_value=tensor(values, dtype=constant.const_value.dtype, name=name),
            )
            for node in readers:
                node.outputs[number].replace_all_uses_with(stored)
            graph.initializers.add(stored)
            waiting.append(stored)
        graph.remove(readers, safe=True)
        del graph.initializers[constant.name or ""]


def _way(node: Node, constant: Value) -> tuple[object, ...] | None:
    """What a node does with a constant, equal for those that do the same; None for another operator."""
    if node.domain or node.inputs[0] is not constant:
        return None
    if node.op_type == "Transpose":
        axes = node.attributes.get_ints("perm")
        return ("Transpose", None if axes is None else tuple(axes))
    if node.op_type == "Split":
        sizes = _sizes(node)
        return None if sizes is None else ("Split", node.attributes.get_int("axis", 0), tuple(sizes))
    return None


def _sizes(node: Node) -> list[int] | None:
    """The lengths that a Split cuts off; None where it does not say them, or they are computed."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        said = node.inputs[1].const_value
        return None if said is None else [int(size) for size in said.numpy()]
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    length = None if shape is None else shape[node.attributes.get_int("axis", 0) or 0]
    count = len(node.outputs)
    return [length // count] * count if isinstance(length, int) and length % count == 0 else None


def _made(node: Node, values: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """What it gives: views, whose bytes are put in order when they are written."""
    if node.op_type == "Transpose":
        return [np.transpose(values, node.attributes.get_ints("perm"))]
    ends = np.cumsum(_sizes(node) or ())[:-1]
    return list(np.split(values, ends, axis=node.attributes.get_int("axis", 0) or 0))
