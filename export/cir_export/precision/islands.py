"""Which nodes of a graph stay in float32 when the rest becomes float16.

Float16 holds 65504 at most and loses digits below 6e-5. Sums of squares, GeM's cube and root, exponentials
and attention weights leave that range in ordinary models; the products beside them do not. The statistics
therefore stay float32, and with them the elementwise arithmetic that leads to them and uses them.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from cir_export.precision.held import Held, values_of
from cir_export.precision.layers import RECURRENT, layers_of

__all__ = ["float32_islands"]

_STATISTICS = {
    "BatchNormalization",
    "Exp",
    "GlobalAveragePool",
    "GlobalLpPool",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "Pow",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
    "Sqrt",
}
"""Normalisation, softmax, powers and roots."""

_FULL_ALONE = {"Celu", "IsInf", "Range"}
"""Operators of opset 17 that ONNX has in float32 and not in float16."""

_SCATTERED = {"ScatterElements", "ScatterND"}
"""With a reduction these are sums of many values, and ONNX Runtime's kernels for processors fail at them in
float16, though they are said to take it."""

_LEADING = {"Abs", "Clip", "Div", "Max", "Mul", "Neg", "Sub"}
"""Arithmetic that makes the argument of a statistic: x * x of a norm, GeM's clamp and cube."""

_SCALING = {"Div", "Mul", "Sub"}
"""Arithmetic that uses a statistic: x / norm, x - mean."""

_GUARDING = {"Add", "Clip", "Max", "Min"}
"""With constants alone beside it: what keeps a norm from zero before it divides."""

_PREPARING = {"Add", "Cast", "Div", "Mul", "Sub", "Transpose"}
"""Arithmetic on the image's bytes, before the first layer."""


def float32_islands(model: ModelProto, held: Held | None = None) -> set[str]:
    """Names of the nodes whose arithmetic stays float32.

    Besides statistics these are the normalisation of the image; recurrent layers, whose state would go
    through as many roundings as a text has words; what has no float16 form; and arithmetic with a constant
    that float16 does not have, like the 1e9 of a mask.

    Args:
        model: whose nodes have names of their own.
        held: where weights are that the graph leaves out.
    """
    nodes = list(model.graph.node)
    producer = {name: node for node in nodes for name in node.output if name}
    kept = {node.name for node in nodes if node.op_type in _STATISTICS | RECURRENT | _FULL_ALONE}
    kept |= {node.name for node in nodes if node.op_type in _SCATTERED and _reduces(node)}
    statistics = {node.name for node in nodes if node.op_type in _STATISTICS}
    for node in reversed(nodes):
        if node.name in statistics:
            before = [producer[name] for name in node.input if name in producer]
            statistics |= {other.name for other in before if other.op_type in _LEADING}
    prepared = {value.name for value in model.graph.input}
    for node in nodes:
        before = [producer[name] for name in node.input if name in producer]
        used = [other.name in statistics for other in before]
        if (node.op_type in _SCALING and any(used)) or (node.op_type in _GUARDING and used == [True]):
            statistics.add(node.name)
        if node.op_type in _PREPARING and any(name in prepared for name in node.input):
            kept.add(node.name)
            prepared.update(node.output)
    layers = layers_of(model)
    others = [node for node in nodes if node.name not in layers]
    read = {name for node in others for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    beyond = {tensor.name for tensor in constants if _beyond_float16(tensor, held)}
    kept |= {node.name for node in others if not beyond.isdisjoint(node.input)}
    return kept | statistics


def _reduces(node: NodeProto) -> bool:
    return any(attribute.name == "reduction" and attribute.s != b"none" for attribute in node.attribute)


def _beyond_float16(tensor: TensorProto, held: Held | None) -> bool:
    """Whether a constant would become infinite or, all of it, zero."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = values_of(tensor, held)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return bool((np.isinf(half) & np.isfinite(values)).any() or (values.any() and not half.any()))
