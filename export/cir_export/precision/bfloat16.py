"""Bfloat16 graphs, and how to see on any processor what their roundings do.

Bfloat16 has float32's range and 8 bits of its digits, so nothing overflows and no statistic is kept apart.
Where the processor multiplies it (AMX, AVX512-BF16, Arm's BF16), OpenVINO computes products of bfloat16 with
sums in float32, and decides for what lies between two products whether it is stored so.

A bfloat16 graph is the float32 graph whose weights of products are stored in bfloat16, each behind a cast:
that is half the size, says what the graph is, and every runtime reads it.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, NodeProto, TensorProto, helper

from cir_export.checking import check_nodes
from cir_export.precision.held import becomes
from cir_export.precision.layers import RECURRENT
from cir_infer.errors import ExportError

__all__ = ["PRODUCTS", "has_recurrence", "rounded_products", "to_bfloat16"]

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_STORED = "/bfloat16"


def has_recurrence(model: ModelProto) -> bool:
    """Whether a state passes through a rounding for every word: such a text encoder stays float32."""
    return any(node.op_type in RECURRENT for node in model.graph.node)


def to_bfloat16(model: ModelProto, nodes: Collection[str]) -> ModelProto:
    """A copy that stores the weights of products in bfloat16.

    Args:
        model: a float32 graph whose nodes have names of their own.
        nodes: names of the products whose weights become bfloat16.

    Raises:
        ExportError: what comes out is no valid graph.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    weights = {name for node in copy.graph.node if node.name in nodes for name in node.input}
    casts: list[NodeProto] = []
    for tensor in copy.graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2:
            name, tensor.name = tensor.name, tensor.name + _STORED
            becomes(tensor, "bfloat16")
            casts.append(helper.make_node("Cast", [tensor.name], [name], tensor.name, to=TensorProto.FLOAT))
    _replace(copy, [*casts, *copy.graph.node])
    return copy


def rounded_products(model: ModelProto, nodes: Collection[str]) -> ModelProto:
    """A copy that computes on any processor what bfloat16 products give: their inputs and outputs rounded.

    Args:
        model: in float32, or from `to_bfloat16`.
        nodes: names of the products.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    stored |= {name for node in copy.graph.node if node.name.endswith(_STORED) for name in node.output}
    rounded: dict[str, str] = {}
    made: list[NodeProto] = []
    for node in copy.graph.node:
        if node.name not in nodes:
            made.append(node)
            continue
        for at, name in enumerate(node.input[:2]):
            if name not in stored:
                if name not in rounded:
                    rounded[name] = f"{name}/rounded"
                    made += _pair(name, rounded[name])
                node.input[at] = rounded[name]
        output = node.output[0]
        node.output[0] = f"{output}/exact"
        made += [node, *_pair(node.output[0], output)]
    _replace(copy, made)
    return copy


def _pair(name: str, rounded: str) -> list[NodeProto]:
    """There and back."""
    between = f"{rounded}/stored"
    return [
        helper.make_node("Cast", [name], [between], f"{rounded}/to", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [between], [rounded], f"{rounded}/from", to=TensorProto.FLOAT),
    ]


def _replace(model: ModelProto, nodes: list[NodeProto]) -> None:
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    try:
        check_nodes(model)
    except Exception as error:  # ValidationError and others
        raise ExportError(f"bfloat16 made an invalid graph: {error}") from error
