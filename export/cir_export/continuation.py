"""Takes one graph apart into two: what some outputs need, and what goes on from there to the others.

A bundle stores the image graph and, beside it, only what explanations add to it, so no weight is stored
twice; `cir_infer.bundle.continuation` puts them together again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from onnx import ModelProto

from cir_export.checking import check_nodes, shell

__all__ = ["number_anew", "taken_apart"]

_NUMBERS = re.compile(r"_\d+")
"""In names of values, add_42 or split_2_split_1: the exporter counts through all that it traced."""


def taken_apart(model: ModelProto, further: tuple[str, ...]) -> tuple[ModelProto, ModelProto]:
    """The graph without some of its outputs, and its continuation to them.

    Args:
        model: the whole graph.
        further: names of the outputs that the continuation gives.

    Returns:
        The graph for the other outputs; and a model that holds the nodes and constants that only `further`
        need. Its nodes read values of the first graph by their names, and it has no inputs of its own.
    """
    first, rest = shell(model), shell(model)
    graph = model.graph
    first.graph.input.extend(graph.input)
    first.graph.output.extend(value for value in graph.output if value.name not in further)
    rest.graph.output.extend(value for value in graph.output if value.name in further)
    wanted = {value.name for value in first.graph.output}
    needed: set[int] = set()
    for place in reversed(range(len(graph.node))):
        if wanted.intersection(graph.node[place].output):
            needed.add(place)
            wanted.update(graph.node[place].input)
    for place, node in enumerate(graph.node):
        (first if place in needed else rest).graph.node.append(node)
    for tensor in graph.initializer:
        (first if tensor.name in wanted else rest).graph.initializer.append(tensor)
    check_nodes(first)
    return first, rest


def number_anew(models: Sequence[ModelProto]) -> None:
    """Counts names anew, in place, so that a graph's bytes do not depend on what else was traced with it.

    Its sha256 is part of the fingerprint: a model that is exported with other explanations, or without, makes
    the same rows, and its gallery must stay valid.

    Args:
        models: the graph, then what goes on from it.
    """
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    ends = {value.name for model in models for value in (*model.graph.input, *model.graph.output)}

    def new(name: str) -> str:
        if name in ends or "." in name or not name:  # with a point: the model's own weights
            return name
        while name not in names:
            base = _NUMBERS.sub("", name)
            found = f"{base}_{counts[base]}"
            counts[base] += 1
            if found not in ends:
                names[name] = found
        return names[name]

    count = 0
    for model in models:
        for node in model.graph.node:
            node.name = f"node_{node.op_type}_{count}"
            count += 1
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
        for tensor in model.graph.initializer:
            tensor.name = new(tensor.name)
        model.graph.initializer.sort(key=lambda tensor: tensor.name)
