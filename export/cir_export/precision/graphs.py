"""Every graph of a bundle in another precision.

`compose` makes query terms, whose attention weights and squares leave float16's range: it stays float32.
All three take the encoders of images and texts; bfloat16 and int8 no recurrent ones, whose state forgets
nothing, errors included, and where float16 leaves the recurrent layers. For TensorRT int8 leaves texts alone,
which were not measured there, and has its attention in float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

from onnx import ModelProto

from cir_export.continuation import taken_apart
from cir_export.precision.attention import attention_of, in_float16
from cir_export.precision.bfloat16 import PRODUCTS, has_recurrence, rounded_products, to_bfloat16
from cir_export.precision.float16 import rounded, to_float16
from cir_export.precision.held import Held
from cir_export.precision.int8 import Form, only, passing, quantisable, to_int8
from cir_export.precision.islands import float32_islands
from cir_export.precision.layers import layers_of, matching, name_nodes, owners_of
from cir_infer.bundle import Bundle
from cir_infer.console.progress import progress_bar
from cir_infer.errors import ExportError, UsageError
from cir_infer.runtime.graph import Array

__all__ = ["PRECISIONS", "Layer", "LoweredGraph", "PrecisionName", "lower_graphs", "lowerable_layers"]

PrecisionName = Literal["bfloat16", "float16", "int8"]
PRECISIONS: tuple[PrecisionName, ...] = ("bfloat16", "float16", "int8")

_LOWERED = {
    "bfloat16": ("image", "reference", "text"),
    "float16": ("image", "reference", "text"),
    "int8": ("image", "reference", "text"),
}


@dataclass(frozen=True)
class LoweredGraph:
    """One graph in another precision, without the weights that lie beside its bundle's graphs (`Held`).

    Attributes:
        name: "image", "reference" or "text".
        original: the float32 graph.
        model: what the bundle will hold.
        judged: what ONNX Runtime judges: `model`, or a graph in float32 with its roundings.
        layers: the layers that could be lowered, in order.
        kept: those of them that stayed float32.
        alone: gives a graph in which one layer alone is lowered.
        rest: what explanations add to `model`, in float32; None where the bundle holds no such thing.
        keeping: lowers it anew with more layers in float32; None but in int8.
    """

    name: str
    original: ModelProto
    model: ModelProto
    judged: ModelProto
    layers: tuple[str, ...]
    kept: frozenset[str]
    alone: Callable[[str], ModelProto] = field(repr=False)
    rest: ModelProto | None = field(default=None, repr=False)
    keeping: Callable[[Collection[str]], LoweredGraph] | None = field(default=None, repr=False)


def lower_graphs(
    bundle: Bundle,
    precision: PrecisionName,
    form: Form,
    float32: Sequence[str],
    images: Callable[[], Iterable[Array]],
    texts: Callable[[], Iterable[Mapping[str, Array]]] | None = None,
    on_text_error: Callable[[ExportError], object] | None = None,
    progress: bool = False,
) -> list[LoweredGraph]:
    """Lowers the graphs of a float32 bundle that a precision is for.

    Args:
        bundle: in float32.
        precision: the new one.
        form: what will run int8.
        float32: patterns of layers that stay float32.
        images: gives prepared batches to calibrate int8 with, anew at every call.
        texts: gives what a text graph reads to calibrate int8 with; None leaves that graph alone.
        on_text_error: told why int8 has no text graph, in place of the error.
        progress: say how far it is.

    Raises:
        UsageError: a pattern names no layer of any graph.
        ExportError: a converter fails.
    """
    held = Held(bundle)
    originals, layers = _graphs_with_layers(bundle, held, precision, form, texts is not None)
    every = [layer for found in layers.values() for layer in found.values()]
    kept = matching(every, float32)
    if kept.issuperset(every):
        raise UsageError("--keep-float32 names every layer; leave --precision out instead")
    # Lowered together with what goes on from it, whose nodes are left as they are.
    whole = dict(originals)
    if bundle.manifest.explain is not None:
        whole["image"] = _named(held.graph("explain"))
    lowered = []
    for name, model in progress_bar(
        originals.items(), len(originals), f"lowering to {precision}", "graph", progress
    ):
        own = (name, model, whole[name], layers[name], kept)
        if precision == "bfloat16":
            lowered.append(_bfloat16(*own))
        elif precision == "float16":
            lowered.append(_float16(*own, held))
        else:
            try:
                lowered.append(_int8(*own, form, partial(_batches, name, images, texts), held))
            except ExportError as error:
                if name != "text" or on_text_error is None:
                    raise
                on_text_error(error)
    return lowered


class Layer(NamedTuple):
    """A layer that a precision is for.

    Attributes:
        name: as `Lowering.keep_float32` takes it.
        graph: the graph that it is in.
        nbytes: of its weights in float32, those included that it shares.
    """

    name: str
    graph: str
    nbytes: int


def lowerable_layers(bundle: Bundle, precision: PrecisionName, form: Form = "cpu") -> list[Layer]:
    """The layers of a float32 bundle that a precision lowers where it is not told to keep them, in order.

    Args:
        bundle: in float32.
        precision: the new one.
        form: what will run int8.

    Raises:
        UsageError: it has none.
    """
    held = Held(bundle)
    originals, layers = _graphs_with_layers(bundle, held, precision, form, texts=True)
    found = []
    for graph, model in originals.items():
        islands = float32_islands(model, held) if precision == "float16" else set()
        sizes = {tensor.name: 4 * math.prod(tensor.dims) for tensor in model.graph.initializer}
        inputs = {node.name: node.input for node in model.graph.node}
        found += [
            Layer(layer, graph, sum(sizes.get(name, 0) for name in inputs[node]))
            for node, layer in layers[graph].items()
            if node not in islands
        ]
    return found


def _graphs_with_layers(
    bundle: Bundle, held: Held, precision: PrecisionName, form: Form, texts: bool
) -> tuple[dict[str, ModelProto], dict[str, dict[str, str]]]:
    """The graphs that a precision is for, and the layers of each by node name.

    Raises:
        UsageError: no graph has any.
    """
    originals = {
        name: _named(held.graph(name)) for name in _LOWERED[precision] if name in bundle.manifest.graphs
    }
    if precision == "bfloat16":
        originals = {name: model for name, model in originals.items() if not has_recurrence(model)}
    text = originals.get("text") if precision == "int8" else None
    if text is not None and (not texts or form != "cpu" or has_recurrence(text)):
        del originals["text"]
    layers = {name: _lowerable(name, model, precision) for name, model in originals.items()}
    # What has no layers hands its inputs on: token ids from 2,048 on are no numbers of float16.
    originals = {name: model for name, model in originals.items() if layers[name]}
    if not originals:
        raise UsageError(
            f"nothing in the encoders of this bundle becomes {precision}: they have no layers with weights "
            "that could; keep the float32 bundle"
        )
    return originals, {name: layers[name] for name in originals}


def _batches(
    name: str,
    images: Callable[[], Iterable[Array]],
    texts: Callable[[], Iterable[Mapping[str, Array]]] | None,
) -> Iterable[Mapping[str, Array]]:
    if name == "text":
        return texts() if texts is not None else ()
    return ({"image": batch} for batch in images())


def _lowerable(name: str, model: ModelProto, precision: PrecisionName) -> dict[str, str]:
    """Layer names by node name; before a name that is the node's own stands the graph's."""
    layers = {node: f"{name}.{layer}" if layer == node else layer for node, layer in layers_of(model).items()}
    if precision == "int8":
        return quantisable(model, layers)
    if precision == "bfloat16":
        products = {node.name for node in model.graph.node if node.op_type in PRODUCTS}
        return {node: layer for node, layer in layers.items() if node in products}
    return layers


def _named(model: ModelProto) -> ModelProto:
    name_nodes(model)
    return model


def _apart(whole: ModelProto, model: ModelProto) -> tuple[ModelProto, ModelProto | None]:
    """A lowered graph without what goes on from it, and that."""
    own = {value.name for value in model.graph.output}
    further = tuple(value.name for value in whole.graph.output if value.name not in own)
    return taken_apart(whole, further) if further else (whole, None)


def _float16(
    name: str, model: ModelProto, whole: ModelProto, layers: dict[str, str], kept: set[str], held: Held
) -> LoweredGraph:
    owners = owners_of(model, layers)
    islands = float32_islands(model, held)
    nodes = [node.name for node in model.graph.node]
    further = {node.name for node in whole.graph.node} - set(nodes)

    def keeping(lowered: Callable[[str], bool], of: ModelProto = model) -> ModelProto:
        return to_float16(of, islands | further | {node for node in nodes if not lowered(owners[node])}, held)

    half, rest = _apart(keeping(lambda owner: owner not in kept, whole), model)
    return LoweredGraph(
        name,
        model,
        half,
        rounded(half),
        tuple(layer for node, layer in layers.items() if node not in islands),
        frozenset(kept.intersection(layers.values())),
        lambda layer: rounded(keeping(lambda owner: owner == layer)),
        rest,
    )


def _bfloat16(
    name: str, model: ModelProto, whole: ModelProto, layers: dict[str, str], kept: set[str]
) -> LoweredGraph:
    stored, rest = _apart(to_bfloat16(whole, set(layers)), model)
    products = {node.name for node in stored.graph.node if node.op_type in PRODUCTS}
    nodes = {layer: node for node, layer in layers.items()}
    return LoweredGraph(
        name,
        model,
        stored,
        rounded_products(stored, products),
        tuple(layers.values()),
        frozenset(kept.intersection(layers.values())),
        lambda layer: rounded_products(to_bfloat16(model, {nodes[layer]}), {nodes[layer]}),
        rest,
    )


def _int8(
    name: str,
    model: ModelProto,
    whole: ModelProto,
    layers: dict[str, str],
    kept: set[str],
    form: Form,
    feeds: Callable[[], Iterable[Mapping[str, Array]]],
    held: Held,
) -> LoweredGraph:
    own = kept.intersection(layers.values())
    all_of_it = whole if own.issuperset(layers.values()) else to_int8(whole, layers, own, feeds(), form, held)
    half = attention_of(model, layers, own, held) if form == "tensorrt" else {}
    quantised, rest = _apart(all_of_it, model)
    lowered = quantised
    if half:
        lowered, rest = _apart(in_float16(all_of_it, half, held), model)
    nodes = {layer: {node} for node, layer in layers.items()}
    owners = owners_of(model, layers)
    for node in passing(model, layers, own) if form == "cpu" else ():
        nodes[owners[node]].add(node)

    def alone(layer: str) -> ModelProto:
        found = only(quantised, model, nodes[layer])
        follows = {node for node, owner in half.items() if owner == layer}
        return rounded(in_float16(found, follows, held)) if follows else found

    return LoweredGraph(
        name,
        model,
        lowered,
        rounded(lowered) if half else lowered,
        tuple(layers.values()),
        frozenset(own),
        alone,
        rest,
        lambda more: _int8(name, model, whole, layers, kept.union(more), form, feeds, held),
    )
