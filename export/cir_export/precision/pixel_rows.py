"""The arithmetic on an image's bytes, in whole rows of pixels.

A convolution of bytes reads NHWC, and ONNX Runtime moves the transposition before it past whatever is
computed value by value: an image's normalisation. There a constant a channel is three numbers, broadcast
anew for every pixel, which takes ten times as long as along rows: measured, 1.8 of 27 ms of a ResNet-50
in int8. So the image is normalised as it comes, NHWC, a row of pixels as one axis, its constants repeated
along it, and transposed afterwards. Every value is computed as before, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from cir_export.checking import drop_unread, names_read
from cir_infer.runtime.graph import Array

__all__ = ["in_rows_of_pixels"]

_VALUE_BY_VALUE = {"Add", "Div", "Mul", "Sub"}
_TO_PLANES = [0, 3, 1, 2]
_OURS = "rows_of_pixels"
"""Beginning of the names of what is added."""


@dataclass
class _Chain:
    """What happens to an image before anything reads more than one value of it.

    Attributes:
        cast: makes numbers of its bytes.
        steps: what follows, in order, without the transposition.
        constants: of each step, which input is constant, and its value for each channel.
        output: the name of what the chain makes, float32 (n, 3, H, W).
        nodes: names of all its nodes.
    """

    cast: NodeProto
    steps: list[NodeProto] = field(default_factory=list)
    constants: list[tuple[int, Array]] = field(default_factory=list)
    output: str = ""
    nodes: set[str] = field(default_factory=set)


def in_rows_of_pixels(model: ModelProto) -> None:
    """Lets an image graph normalise rows of pixels, in place; one that does it in another way stays as it is.

    Args:
        model: reads uint8 (n, H, W, 3), H and W given; its nodes have names of their own.
    """
    for value in model.graph.input:
        lengths = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        bytes_ = value.type.tensor_type.elem_type == TensorProto.UINT8
        if bytes_ and len(lengths) == 4 and lengths[3] == 3 and lengths[1] and lengths[2]:
            chain = _chain_from(value.name, model)
            if chain is not None:
                _rewrite(model, chain, lengths[2])


def _chain_from(image: str, model: ModelProto) -> _Chain | None:
    given = {value.name for value in model.graph.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in names_read([node]):
            readers.setdefault(name, []).append(node)
    small = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and tensor.data_location != TensorProto.EXTERNAL
        and np.prod(tensor.dims, dtype=np.int64) in (1, 3)
    }
    casts = [node for node in readers.get(image, []) if node.op_type == "Cast"]
    if len(casts) != 1 or helper.get_node_attr_value(casts[0], "to") != TensorProto.FLOAT:
        return None
    chain = _Chain(casts[0])
    here, planes = casts[0].output[0], False
    while True:
        node = readers[here][0] if len(readers.get(here, [])) == 1 and here not in given else None
        if node is None:
            break
        if node.op_type == "Transpose" and not planes:
            if not any(a.name == "perm" and list(a.ints) == _TO_PLANES for a in node.attribute):
                break
            planes = True
        elif node.op_type in _VALUE_BY_VALUE and len(node.input) == 2:
            index = 1 - list(node.input).index(here)
            constant = small.get(node.input[index])
            values = None if constant is None else _by_channel(constant, planes)
            if values is None:
                break
            chain.steps.append(node)
            chain.constants.append((index, values))
        else:
            break
        chain.nodes.add(node.name)
        here = node.output[0]
        if planes:
            chain.output = here
    # Without a constant a channel there is nothing to broadcast slowly.
    return chain if planes and any(values.size == 3 for _, values in chain.constants) else None


def _by_channel(constant: TensorProto, planes: bool) -> Array | None:
    """One value, or three where they stand for channels; None for what is neither."""
    values = numpy_helper.to_array(constant)
    if values.size == 1:
        return values.reshape(1) if values.ndim <= 4 else None
    after = 2 if planes else 0
    channels = values.ndim - 1 - after
    shape = [1] * values.ndim
    if channels < 0 or values.ndim > 4:
        return None
    shape[channels] = 3
    return values.reshape(3) if list(values.shape) == shape else None


def _rewrite(model: ModelProto, chain: _Chain, width: int) -> None:
    """Puts the same steps over rows in the chain's place."""

    def constant(name: str, values: Array) -> str:
        model.graph.initializer.append(numpy_helper.from_array(values, f"{_OURS}/{name}"))
        return f"{_OURS}/{name}"

    def node(kind: str, number: int, inputs: list[str]) -> NodeProto:
        name = f"{_OURS}/{number}"
        return helper.make_node(kind, inputs, [name], name=name)

    rows = constant("rows", np.array([0, 0, 3 * width], np.int64))
    pixels = constant("pixels", np.array([0, 0, width, 3], np.int64))
    made = [node("Reshape", 0, [chain.cast.output[0], rows])]
    for number, (step, (index, values)) in enumerate(zip(chain.steps, chain.constants, strict=True), 1):
        # One value too: as an axis of its own it adds none to the rows, whatever shape it has.
        name = constant(f"values/{number}", np.tile(values, width) if values.size == 3 else values)
        inputs = [made[-1].output[0], name] if index else [name, made[-1].output[0]]
        made.append(node(step.op_type, number, inputs))
    made.append(node("Reshape", len(made), [made[-1].output[0], pixels]))
    made.append(node("Transpose", len(made), [made[-1].output[0]]))
    made[-1].attribute.append(helper.make_attribute("perm", _TO_PLANES))
    made[-1].output[0] = chain.output
    nodes = [node for node in model.graph.node if node.name not in chain.nodes]
    after = next(number for number, node in enumerate(nodes) if node.name == chain.cast.name) + 1
    nodes[after:after] = made
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)
