"""Multiply-accumulates and parameters of an ONNX graph, counted from its shapes.

Counted as the authors' profiler (ptflops) counts them: convolutions, linear layers and matrix products;
and, which it leaves out, recurrent layers. Elementwise work is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from cir_infer.errors import BundleError, shown

__all__ = ["GraphCost", "graph_cost"]


@dataclass(frozen=True)
class GraphCost:
    """What one run of a graph computes.

    Attributes:
        macs: multiply-accumulates.
        recurrent_macs: those of them in GRU and LSTM layers.
        parameters: numbers in the graph's floating-point initialisers.
    """

    macs: int
    recurrent_macs: int
    parameters: int


def graph_cost(model: bytes, sizes: Mapping[str, int]) -> GraphCost:
    """Count a serialised model.

    Args:
        model: the ONNX model.
        sizes: what its free axes are, by their name in the graph, e.g. {"n": 1, "t": 20}; an axis that
            is not named here is 1.

    Raises:
        BundleError: a shape that is needed cannot be inferred.
    """
    import onnx

    proto = onnx.load_from_string(model)
    for value in proto.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.WhichOneof("value") != "dim_value":
                axis.dim_value = sizes.get(axis.dim_param, 1)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    shapes.update({weight.name: list(weight.dims) for weight in inferred.graph.initializer})
    macs = recurrent = 0
    for node in inferred.graph.node:
        count = _COUNTERS.get(node.op_type)
        if count is None:
            continue
        found = count(node, shapes)
        if found <= 0:
            raise BundleError(f"the shapes around {node.op_type} {shown(node.name)} cannot be inferred")
        macs += found
        recurrent += found if node.op_type in ("GRU", "LSTM") else 0
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    parameters = sum(prod(weight.dims) for weight in proto.graph.initializer if weight.data_type in floating)
    return GraphCost(macs, recurrent, parameters)


def _convolution(node: Any, shapes: Mapping[str, list[int]]) -> int:
    return prod(shapes.get(node.output[0], [0])) * prod(shapes[node.input[1]][1:])


def _product(node: Any, shapes: Mapping[str, list[int]]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = shapes.get(node.input[0], [0])[0 if transposed else -1]
    return prod(shapes.get(node.output[0], [0])) * inner


def _recurrent(node: Any, shapes: Mapping[str, list[int]]) -> int:
    steps, batch = shapes.get(node.input[0], [0, 0])[:2]
    # W and R hold every gate of every direction.
    return steps * batch * (prod(shapes[node.input[1]]) + prod(shapes[node.input[2]]))


_COUNTERS: dict[str, Callable[[Any, Mapping[str, list[int]]], int]] = {
    "Conv": _convolution,
    "Gemm": _product,
    "MatMul": _product,
    "GRU": _recurrent,
    "LSTM": _recurrent,
}
