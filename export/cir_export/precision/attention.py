"""Attention in float16 within an int8 graph, for TensorRT.

Int8 is for products with constant weights. Attention multiplies activations: that would stay float32, and
TensorRT fuses none such. In float16 it makes one layer of both products and the softmax between them.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, NodeProto

from cir_export.precision.float16 import to_float16
from cir_export.precision.held import Held
from cir_export.precision.islands import float32_islands
from cir_export.precision.layers import owners_of

__all__ = ["attention_of", "in_float16"]

_BETWEEN = {"Add", "Div", "Mul", "Sub", "Where"}
"""What may stand between scores and their softmax: a factor, a mask, a bias of places."""


def attention_of(
    model: ModelProto, layers: dict[str, str], float32: Collection[str], held: Held | None = None
) -> dict[str, str]:
    """The nodes of attention that float16 can hold: layer names by node name.

    It is all that follows the layers that make queries, keys and values, up to the next layer, but for what
    no graph has in float16. Where one of these layers stays float32, so does attention.

    Args:
        model: a float32 graph whose nodes have names of their own.
        layers: its layers, names by node name.
        float32: names of layers that stay float32.
        held: where weights are that the graph leaves out.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    owners = owners_of(model, layers)

    def mixes(node: NodeProto | None) -> bool:
        return node is not None and node.op_type == "MatMul" and not constants.intersection(node.input)

    def scores_of(softmax: NodeProto) -> NodeProto | None:
        waiting = [softmax.input[0]]
        while waiting:
            node = producer.get(waiting.pop())
            if mixes(node):
                return node
            if node is not None and node.op_type in _BETWEEN:
                waiting += node.input
        return None

    read: set[str] = set()
    for node in model.graph.node:
        softmax = producer.get(node.input[0]) if mixes(node) else None
        scores = scores_of(softmax) if softmax is not None and softmax.op_type == "Softmax" else None
        if scores is None:
            continue
        made = [producer[name] for name in (*scores.input, node.input[1]) if name in producer]
        own = {owners[one.name] for one in (*made, scores, node)}
        if own.isdisjoint({"", *float32}):
            read |= own
    islands = float32_islands(model, held) if read else set()
    return {
        node.name: owners[node.name]
        for node in model.graph.node
        if owners[node.name] in read and node.name not in layers and node.name not in islands
    }


def in_float16(quantised: ModelProto, nodes: Collection[str], held: Held | None = None) -> ModelProto:
    """A graph in which the named nodes compute in float16, and all others in what they did.

    Raises:
        ExportError: see `to_float16`.
    """
    return to_float16(quantised, {node.name for node in quantised.graph.node} - set(nodes), held)
