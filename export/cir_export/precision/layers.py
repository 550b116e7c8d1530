"""The layers of a graph: nodes with weights, under the names that their weights have in the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from onnx import ModelProto, NodeProto, TensorProto

from cir_infer.errors import UsageError, shown

__all__ = ["RECURRENT", "layers_of", "matching", "name_nodes", "owners_of", "shortest_names"]

RECURRENT = {"GRU", "LSTM", "RNN"}

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *RECURRENT}
_SUFFIXES = (".weight", ".bias", "_weight", "_bias")


def name_nodes(model: ModelProto) -> None:
    """Gives every node of a graph a name of its own, in place."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def layers_of(model: ModelProto) -> dict[str, str]:
    """Layer names by node name, in the graph's order.

    A layer is named after its weight, "image_encoder.trunk.layer1.0.conv1", or after its bias where the
    exporter has transposed the weight and so renamed it; but not after a bias that another layer has too, as
    the exporter stores equal ones once: then after its node.
    """
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    owned: dict[str, list[str]] = {}  # by node, its weight and what else is its own
    weight_of: dict[str, str] = {}  # by node that reads some of it
    for node in model.graph.node:
        own = [name for name in node.input if name in weights]
        if node.op_type not in _LAYERS or not own:
            continue
        after = readers.get(node.output[0], [])
        weight_of[node.name] = own[0]
        if len(after) == 1 and after[0].op_type == "Add":
            own += [name for name in after[0].input if name in weights]
            weight_of[after[0].name] = own[0]
        owned[node.name] = own
    layers: dict[str, str] = {}
    for node_name, own in owned.items():
        named = [
            name
            for name in own
            if "." in name
            and (name == own[0] or all(weight_of.get(reader.name) == own[0] for reader in readers[name]))
        ]
        layer = _plain(named[0]) if named else node_name
        layers[node_name] = f"{layer} ({node_name})" if layer in layers.values() else layer
    return layers


def owners_of(model: ModelProto, layers: dict[str, str]) -> dict[str, str]:
    """By node name, the layer whose output the node works on: the last one before it; "" before the first."""
    order = {name: number for number, name in enumerate(layers)}
    producer: dict[str, str] = {}  # tensor -> node name of the layer
    owners: dict[str, str] = {}
    for node in model.graph.node:
        before = [producer[name] for name in node.input if producer.get(name)]
        owner = node.name if node.name in layers else max(before, key=order.__getitem__, default="")
        owners[node.name] = layers.get(owner, "")
        producer.update(dict.fromkeys(node.output, owner))
    return owners


def matching(layers: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The layers that `patterns` name; * and ? stand for anything, a name for itself and all below it.

    Raises:
        UsageError: a pattern names no layer.
    """
    known = list(layers)
    found: set[str] = set()
    for pattern in patterns:
        hit = {name for name in known if _fits(name, pattern)}
        if not hit:
            raise UsageError(
                f"no layer is named {shown(pattern)}; the layers are {_listed(known)} (all: --layers)"
            )
        found |= hit
    return found


def shortest_names(wanted: Iterable[str], every: Iterable[str]) -> list[str]:
    """Patterns for `matching` that name layers and no others, short where all of a part is wanted.

    Args:
        wanted: names of layers.
        every: all of them, the wanted ones included.
    """
    chosen = list(dict.fromkeys(name.split(" (")[0] for name in wanted))
    others = {name.split(" (")[0] for name in every} - set(chosen)
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        beginnings = (".".join(parts[:length]) for length in range(1, len(parts)))
        alike = (
            start
            for start in beginnings
            if not any(f"{other}.".startswith(f"{start}.") for other in others)
            and sum(f"{one}.".startswith(f"{start}.") for one in chosen) > 1
        )
        found[next(alike, name)] = None
    return list(found)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith((f"{pattern}.", f"{pattern} ("))


def _listed(names: Collection[str]) -> str:
    listed = list(names)
    return ", ".join(listed if len(listed) <= 12 else [*listed[:6], "...", *listed[-5:]])


def _plain(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removeprefix("model.")
