"""Holds a graph against ONNX's rules without its weights, which take gigabytes and no rule reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

__all__ = ["check_nodes", "drop_unread", "names_read", "shell"]

_SMALL = 4096
"""Elements; a smaller constant may be axes or a shape, which the rules do read."""


def check_nodes(model: ModelProto) -> None:
    """`onnx.checker.check_model` with shapes inferred, on a copy in which large constants are inputs.

    Raises:
        Exception: of several types, where the graph is not valid.
    """
    copy = shell(model)
    graph = model.graph
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        size = 1
        for length in tensor.dims:
            size *= length
        if size <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    onnx.checker.check_model(copy, full_check=True)


def shell(model: ModelProto) -> ModelProto:
    """The model without anything in its graph; no weight is copied on the way."""
    copy = ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if field.is_repeated:
            getattr(copy, field.name).extend(value)
        else:
            setattr(copy, field.name, value)
    copy.graph.name = model.graph.name
    return copy


def drop_unread(model: ModelProto) -> None:
    """Leaves out, in place, constants that nothing reads: a runtime is handed no values for them."""
    read = {*names_read(model.graph.node), *(output.name for output in model.graph.output)}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in read:
            del model.graph.initializer[index]


def names_read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """What nodes read, and the branches of an If or the body of a Loop, which see the graph around them."""
    for node in nodes:
        yield from filter(None, node.input)  # an input that is left out has no name
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from names_read(graph.node)
                yield from (output.name for output in graph.output)
