"""Operators that opset 18 brought, written out in those of opset 17.

Mish(x) = x tanh(softplus(x))
Resize with antialias = A_h x A_w^T     the weights of an antialiased resize depend on the sizes alone
Col2Im(x) = ConvTranspose(x, one-hot)   every value goes to its place in its block, and blocks are summed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch.nn import functional

__all__ = ["write_out"]

Shapes = Mapping[str, list[int | None]]
Array = npt.NDArray[np.generic]


def write_out(model: ModelProto) -> None:
    """Replaces such nodes, in place. What cannot be written out, e.g. of unknown sizes, stays."""
    if not any(_way(node) for node in model.graph.node):
        return
    shapes = _shapes(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        way = _way(node)
        written = None if way is None else way(node, shapes, constants)
        if written is None:
            nodes.append(node)
            continue
        parts, added = written
        for number, part in enumerate(parts):
            part.name = f"{node.name or node.op_type}_{number}"
            part.metadata_props.extend(node.metadata_props)
        nodes += parts
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in added.items())
    del model.graph.node[:]
    model.graph.node.extend(nodes)


Written = tuple[list[NodeProto], dict[str, Array]] | None


def _way(node: NodeProto) -> Callable[[NodeProto, Shapes, Mapping[str, Array]], Written] | None:
    if node.op_type == "Resize" and not _attributes(node).get("antialias"):
        return None
    return None if node.domain else _WAYS.get(node.op_type)


def _mish(node: NodeProto, shapes: Shapes, constants: Mapping[str, Array]) -> Written:  # noqa: ARG001
    x, y = node.input[0], node.output[0]
    return [
        helper.make_node("Softplus", [x], [f"{y}_softplus"]),
        helper.make_node("Tanh", [f"{y}_softplus"], [f"{y}_tanh"]),
        helper.make_node("Mul", [x, f"{y}_tanh"], [y]),
    ], {}


def _antialiased_resize(node: NodeProto, shapes: Shapes, constants: Mapping[str, Array]) -> Written:  # noqa: ARG001
    """Of images (n, C, H, W), as PyTorch has it: the last two axes, each for itself."""
    x, y = node.input[0], node.output[0]
    before, after = shapes.get(x, []), shapes.get(y, [])
    found = _attributes(node)
    mode = {b"linear": "bilinear", b"cubic": "bicubic"}.get(bytes(found["mode"]))
    if len(before) != 4 or len(after) != 4 or mode is None or None in (*before[2:], *after[2:]):
        return None
    aligned = found.get("coordinate_transformation_mode") == b"align_corners"
    high, wide = (
        _resize_weights(int(before[axis] or 0), int(after[axis] or 0), mode, aligned) for axis in (2, 3)
    )
    return [
        helper.make_node("MatMul", [f"{y}_rows", x], [f"{y}_resized_rows"]),
        helper.make_node("MatMul", [f"{y}_resized_rows", f"{y}_columns"], [y]),
    ], {f"{y}_rows": high, f"{y}_columns": np.ascontiguousarray(wide.T)}


def _resize_weights(before: int, after: int, mode: str, aligned: bool) -> npt.NDArray[np.float32]:
    """The matrix (after, before) of one axis: PyTorch's resize of an image whose columns are unit vectors."""
    columns = torch.eye(before)[None, None]
    resized = functional.interpolate(
        columns, size=(after, before), mode=mode, align_corners=aligned, antialias=True
    )
    weights: npt.NDArray[np.float32] = resized[0, 0].numpy()
    return weights


def _col2im(node: NodeProto, shapes: Shapes, constants: Mapping[str, Array]) -> Written:
    """From (n, C * kh * kw, blocks) to (n, C, H, W)."""
    x, y = node.input[0], node.output[0]
    sizes, block = (constants.get(name) for name in node.input[1:3])
    channels = (shapes.get(x) or [None, None])[1]
    if sizes is None or block is None or channels is None or len(sizes) != 2 or len(block) != 2:
        return None
    found = _attributes(node)
    strides, dilations = (found.get(name, [1, 1]) for name in ("strides", "dilations"))
    pads = found.get("pads", [0, 0, 0, 0])
    padded = [int(sizes[axis]) + pads[axis] + pads[axis + 2] for axis in (0, 1)]
    reach = [dilations[axis] * (int(block[axis]) - 1) + 1 for axis in (0, 1)]
    counts = [(padded[axis] - reach[axis]) // strides[axis] + 1 for axis in (0, 1)]
    # What no block reaches, at the end of an axis, is zero.
    rest = [padded[axis] - (counts[axis] - 1) * strides[axis] - reach[axis] for axis in (0, 1)]
    place = int(block[0]) * int(block[1])
    kernel = np.tile(
        np.eye(place, dtype=np.float32).reshape(place, 1, *block.tolist()), (channels // place, 1, 1, 1)
    )
    return [
        helper.make_node("Reshape", [x, f"{y}_grid"], [f"{y}_blocks"]),
        helper.make_node(
            "ConvTranspose",
            [f"{y}_blocks", f"{y}_places"],
            [y],
            group=channels // place,
            strides=strides,
            dilations=dilations,
            pads=pads,
            output_padding=rest,
        ),
    ], {f"{y}_grid": np.array([0, channels, *counts], np.int64), f"{y}_places": kernel}


_WAYS = {"Mish": _mish, "Resize": _antialiased_resize, "Col2Im": _col2im}


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _shapes(model: ModelProto) -> dict[str, list[int | None]]:
    """Every value's shape; None for an axis of unknown length."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
