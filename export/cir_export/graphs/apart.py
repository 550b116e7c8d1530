"""Takes a query that is exported in one piece apart: what encodes the reference, the text, and the rest.

What a node depends on says whose it is. A side is cut between two of its nodes, through the values that are
alive there: what stands before becomes a graph of its own, what stands behind is left to compose. As good as
no weights are left there, and among such cuts the one through the fewest numbers is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from cir_export.checking import check_nodes, names_read, shell
from cir_export.dependence import BATCH, Placed, batched, counts_batch, placed
from cir_infer.errors import ExportError

__all__ = ["apart", "rename"]

_SIDES = {"reference": frozenset(["image"]), "text": frozenset(["tokens", "lengths"])}
"""What the graph of a side gives, and what it takes."""

_FEW = 100
"""One part in so many of a side's weights may be left to compose for the sake of a narrower cut."""

_EXACT = (
    TensorProto.FLOAT,
    *(TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16),
)
"""Types all of whose values float32 has."""

_PASSING = (
    *("Identity", "Where", "Cast", "Neg", "Add", "Sub", "Mul", "Reshape", "Flatten", "Expand", "Tile"),
    *("Unsqueeze", "Squeeze", "Transpose", "Concat", "Slice", "Split", "Gather", "Pad"),
)
"""Operators that hand an infinity on. A softmax, for one, makes a finite number of it."""

_OWN = "cir_export_apart"


def apart(query: ModelProto, image: ModelProto) -> dict[str, ModelProto] | None:
    """The graphs of a query, which compute together what it does, node by node.

    Args:
        query: from `image`, `tokens` and `lengths` to terms, with what is known of the shapes inside; it is
            changed.
        image: the image graph of the same model.

    Returns:
        "compose"; "reference", where terms depend on an image otherwise than through its gallery row; "text",
        where they depend on a text. None where they depend on neither, or too little is known of the shapes.

    Raises:
        ExportError: they are no valid graphs.
    """
    rename(query, {name: f"{name}_inside" for name in _SIDES})
    row = _digests(image, placed(image.graph))[image.graph.output[0].name]
    found: dict[str, ModelProto] = {}
    rest = query
    for name in _SIDES:
        parts = _taken_from(rest, name, row)
        if parts is None:
            return None
        rest = parts[-1]
        if len(parts) == 2:
            found[name] = parts[0]
    found["compose"] = rest
    for model in found.values():
        del model.graph.value_info[:]
        try:
            check_nodes(model)
        except Exception as error:  # ValidationError, InferenceError and RuntimeError
            raise ExportError(f"the query cannot be taken apart: {error}") from error
    return found


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Gives values other names wherever they occur, in place."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = names.get(item.name, item.name)


def _taken_from(model: ModelProto, name: str, row: bytes) -> list[ModelProto] | None:
    """The graph of a side and what goes on from it, or that alone where no graph is needed.

    Args:
        model: with the inputs of this side; it is changed.
        name: of the side.
        row: the digest of a gallery row.

    Returns:
        None where the side cannot be cut, or nothing else is left.
    """
    graph, given = model.graph, _SIDES[name]
    nodes = placed(graph)
    mine = [value for value in graph.input if value.name in given]
    others = [value for value in graph.input if value.name not in given]
    crossing = _crossing(model, nodes, given)
    if not crossing:
        return [_part(model, others, graph.output)] if others else None
    known = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    cuts = _cuts(model, nodes, given, crossing)
    digests = _digests(model, [one for one in nodes if one.on <= given]) if name == "reference" else {}
    # Where it is a gallery row, the stored one is read, and no image is needed to refine a hit.
    rows = [cut for cut in cuts if [digests.get(value) for value in cut.values] == [row]]
    endless = _endless(model)
    fitting = [
        cut
        for cut in rows or cuts
        if endless.isdisjoint(cut.values) and all(_crosses(known.get(value)) for value in cut.values)
    ]
    if not fitting:
        return None
    few = cuts[0].left / _FEW
    best = min(
        reversed(fitting),  # of those that are alike, the last
        key=lambda cut: (max(cut.left, few), sum(_numbers(known[value]) for value in cut.values)),
    )
    seam = _seam(model, name, [known[value] for value in best.values])
    rest = _part(model, [*others, seam.handed], graph.output, seam)
    return [rest] if rows else [_part(model, mine, [seam.handed], last=seam.joining), rest]


def _crossing(model: ModelProto, nodes: Sequence[Placed], given: frozenset[str]) -> set[str]:
    """The values of one side that others read, or that are results."""
    read = {value.name for value in model.graph.output}
    read.update(names_read(one.node for one in nodes if not one.on <= given))
    return read & {*given, *(name for one in nodes if one.on and one.on <= given for name in one.node.output)}


@dataclass(frozen=True)
class _Cut:
    """A place between two nodes of a side.

    Attributes:
        values: what is alive there.
        left: bytes of the side's weights that are read behind it.
    """

    values: tuple[str, ...]
    left: int


def _cuts(
    model: ModelProto, nodes: Sequence[Placed], given: frozenset[str], crossing: Collection[str]
) -> list[_Cut]:
    """Every place at which a side can be cut, from its inputs on to what crosses."""
    # Axes, shapes and places are no weights.
    floats = [one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT]
    sizes = {tensor.name: 4 * prod(tensor.dims) for tensor in floats}
    own = _in_order(nodes, given, crossing, sizes)
    last = {name: place for place, one in enumerate(own) for name in names_read([one.node])}
    last.update(dict.fromkeys(crossing, len(own)))
    read_last = {name: place for place, one in enumerate(own) for name in one.weights}
    read = [0] * len(own)
    for name, place in read_last.items():
        read[place] += sizes.get(name, 0)
    alive, left = {name for name in given if name in last}, sum(read)
    cuts = [_Cut(tuple(sorted(alive)), left)]
    for place, one in enumerate(own):
        alive.update(one.node.output)
        alive = {name for name in alive if last.get(name, -1) > place}
        left -= read[place]
        cuts.append(_Cut(tuple(sorted(alive)), left))
    return cuts


def _in_order(
    nodes: Sequence[Placed], given: frozenset[str], crossing: Collection[str], sizes: Mapping[str, int]
) -> list[Placed]:
    """The nodes of a side that make what crosses: first those with weights and what they need, then the rest.

    So what has no weights, as a mask, need not be made before the cut because the exporter wrote it early.
    """
    needed, own = {*crossing}, list[Placed]()
    for one in reversed(nodes):
        if one.on and one.on <= given and not needed.isdisjoint(one.node.output):
            own.append(one)
            needed.update(names_read([one.node]))
    few = sum(sizes.get(name, 0) for name in {name for one in own for name in one.weights}) / _FEW
    needed, first = set(), set[int]()
    for place, one in enumerate(own):
        heavy = sum(sizes.get(name, 0) for name in one.weights) > few
        if heavy or not needed.isdisjoint(one.node.output):
            first.add(place)
            needed.update(names_read([one.node]))
    return [own[place] for place in sorted(range(len(own)), key=lambda place: (place not in first, -place))]


def _crosses(value: ValueInfoProto | None) -> bool:
    """Whether a value has one entry for each image, or text, all of one size, that float32 can hold."""
    if value is None:
        return False
    kind = value.type.tensor_type
    known = [dim.dim_param == BATCH or dim.dim_value > 0 for dim in kind.shape.dim]
    sized = sum(dim.dim_param == BATCH for dim in kind.shape.dim) == 1 and all(known)
    return sized and kind.elem_type in _EXACT


def _endless(model: ModelProto) -> set[str]:
    """Values that may be infinite, as what a mask adds to attention. Embeddings have to be finite."""
    floats = (one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT and one.raw_data)
    found = {one.name for one in floats if np.isinf(numpy_helper.to_array(one)).any()}
    for node in model.graph.node:
        passed = node.op_type in _PASSING and not found.isdisjoint(node.input)
        if passed or node.op_type == "Log":
            found.update(node.output)
    return found


def _axis(value: ValueInfoProto) -> int:
    """The axis of the batch: PyTorch's layers often have it second."""
    return [dim.dim_param for dim in value.type.tensor_type.shape.dim].index(BATCH)


def _lengths(value: ValueInfoProto) -> list[int]:
    """Of the other axes."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_param != BATCH]


def _numbers(value: ValueInfoProto) -> int:
    return int(prod(_lengths(value)))


@dataclass(frozen=True)
class _Seam:
    """How one side's values are handed on.

    Attributes:
        handed: the one float32 value that is.
        joining: the nodes that make it of the values.
        splitting: those that make the values of it, with their constants.
        values: what needs no other node any more.
    """

    handed: ValueInfoProto
    joining: Sequence[NodeProto]
    splitting: Sequence[NodeProto]
    values: Collection[str]
    constants: Sequence[TensorProto] = ()


def _seam(model: ModelProto, name: str, values: Sequence[ValueInfoProto]) -> _Seam:
    """Hands one value on as it is, several flat and side by side."""
    first, names = values[0], [value.name for value in values]
    kind, shape = first.type.tensor_type.elem_type, _lengths(first)
    if len(values) == 1 and kind == TensorProto.FLOAT and shape and _axis(first) == 0:
        handed = helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
        if first.name not in {value.name for value in (*model.graph.input, *model.graph.output)}:
            rename(model, {first.name: name})
            return _Seam(handed, [], [], [name])
        there = [helper.make_node("Identity", names, [name])]
        return _Seam(handed, there, [helper.make_node("Identity", [name], names)], names)
    flat = [f"{_OWN}_{name}_{place}" for place in range(len(values))]
    sizes = np.array([_numbers(value) for value in values], np.int64)
    joining: list[NodeProto] = []
    splitting = [helper.make_node("Split", [name, f"{_OWN}_{name}"], flat, axis=1)]
    constants = [numpy_helper.from_array(sizes, f"{_OWN}_{name}")]
    for value, part in zip(values, flat, strict=True):
        lengths, axis, kind = _lengths(value), _axis(value), value.type.tensor_type.elem_type
        constants.append(numpy_helper.from_array(np.array([0, *lengths], np.int64), f"{part}_shape"))
        front = [axis, *(other for other in range(len(lengths) + 1) if other != axis)]
        ahead = [] if axis == 0 else [("Transpose", {"perm": front})]
        again = [] if axis == 0 else [("Transpose", {"perm": np.argsort(front).tolist()})]
        cast = [] if kind == TensorProto.FLOAT else [("Cast", {"to": TensorProto.FLOAT})]
        uncast = [] if kind == TensorProto.FLOAT else [("Cast", {"to": kind})]
        joining += _chain([value.name], [*cast, *ahead, ("Flatten", {"axis": 1})], part)
        splitting += _chain([part, f"{part}_shape"], [("Reshape", {}), *again, *uncast], value.name)
    joining.append(helper.make_node("Concat", flat, [name], axis=1))
    handed = helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, int(sizes.sum())])
    return _Seam(handed, joining, splitting, names, constants)


def _chain(start: Sequence[str], steps: Sequence[tuple[str, dict[str, Any]]], end: str) -> list[NodeProto]:
    """Nodes one after the other: the first reads `start`, the last gives `end`."""
    between = [f"{_OWN}_{place}_of_{end}" for place in range(1, len(steps))]
    inputs, outputs = [[*start], *([name] for name in between)], [*between, end]
    return [
        helper.make_node(op, read, [given], **attributes)
        for (op, attributes), read, given in zip(steps, inputs, outputs, strict=True)
    ]


def _part(
    model: ModelProto,
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    seam: _Seam | None = None,
    last: Sequence[NodeProto] = (),
) -> ModelProto:
    """What makes some outputs of some inputs.

    Args:
        model: the whole.
        inputs: at least one.
        outputs: what the part gives.
        seam: through which values come in.
        last: nodes that follow those of the whole.
    """
    graph, part = model.graph, shell(model)
    sides = batched(graph)
    come_in = {*(value.name for value in inputs), *(() if seam is None else seam.values)}
    needed = {value.name for value in outputs}
    kept: list[NodeProto] = []
    for node in reversed([*graph.node, *last]):
        if needed.isdisjoint({*node.output} - come_in):
            continue
        copy = NodeProto()
        copy.CopyFrom(node)
        if counts_batch(node, sides):
            copy.input[:] = [inputs[0].name]  # whichever of the inputs was asked, all have as many
        needed.update(names_read([copy]))
        kept.append(copy)
    kept.reverse()
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    if seam is not None:
        kept, constants = [*seam.splitting, *kept], [*constants, *seam.constants]
    part.graph.node.extend(kept)
    part.graph.initializer.extend(constants)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.value_info.extend(value for value in graph.value_info if value.name in needed - come_in)
    return part


def _digests(model: ModelProto, nodes: Sequence[Placed]) -> dict[str, bytes]:
    """What values are, whatever they are called: equal digests are equal computations on equal weights."""
    graph = model.graph
    sides = batched(graph)
    digests = {value.name: value.name.encode() for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for one in nodes:
        node = one.node
        for name in node.input:
            if name in constants and name not in digests:
                digests[name] = _digest_of(constants[name])
        said = hashlib.sha256(node.op_type.encode())
        if counts_batch(node, sides):
            said.update(b"batch")
        else:
            for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
                said.update(attribute.SerializeToString(deterministic=True))
            for name in node.input:
                said.update(hashlib.sha256(digests.get(name, b"")).digest())
        for place, name in enumerate(node.output):
            digests[name] = said.digest() + str(place).encode()
    return digests


def _digest_of(tensor: TensorProto) -> bytes:
    """Of a constant: of one that lies beside the graphs the file names the sum."""
    beside = {entry.key: entry.value for entry in tensor.external_data}
    inside = tensor.raw_data or tensor.SerializeToString(deterministic=True)
    content = beside.get("checksum") or hashlib.sha256(inside).hexdigest()
    return f"{tensor.data_type} {[*tensor.dims]} {content}".encode()
