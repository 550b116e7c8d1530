"""What the nodes of a graph depend on: which of its inputs, and which of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from cir_export.checking import names_read

__all__ = ["Placed", "batched", "counts_batch", "placed"]

BATCH = "n"
"""What the exporter calls the first axis of whatever has one entry for each image, or text."""


@dataclass(frozen=True)
class Placed:
    """A node of a graph.

    Attributes:
        node: itself.
        on: the inputs that its values depend on. How many entries a batch has is no such dependence: it is
            the same for all inputs, whichever of them the exporter asked.
        weights: the constants that it reads, itself or through nodes that depend on no input.
    """

    node: NodeProto
    on: frozenset[str]
    weights: frozenset[str]


def placed(graph: GraphProto) -> list[Placed]:
    """The nodes, in the order in which they run."""
    constants = {tensor.name for tensor in graph.initializer}
    depends = {value.name: frozenset([value.name]) for value in graph.input if value.name not in constants}
    made_of = {name: frozenset([name]) for name in constants}
    sides, nodes = batched(graph), []
    none: frozenset[str] = frozenset()
    for node in graph.node:
        names = [] if counts_batch(node, sides) else [*names_read([node])]
        on = none.union(*(depends.get(name, none) for name in names))
        read = none.union(*(made_of.get(name, none) for name in names))
        for name in filter(None, node.output):
            depends[name] = on
            if not on:
                made_of[name] = read
        nodes.append(Placed(node, on, read))
    return nodes


def batched(graph: GraphProto) -> set[str]:
    """The values that are known to have one entry for each image, or text, along their first axis."""
    known = (*graph.input, *graph.value_info)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in known}
    return {name for name, dims in shapes.items() if dims and dims[0].dim_param == BATCH}


def counts_batch(node: NodeProto, sides: set[str]) -> bool:
    """Whether all that a node gives is how many entries a batch has."""
    said = {attribute.name: attribute.i for attribute in node.attribute}
    first = said.get("start", 0) == 0 and said.get("end") == 1
    return node.op_type == "Shape" and first and node.input[0] in sides
