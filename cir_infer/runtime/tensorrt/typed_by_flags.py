"""TensorRT 8.6: batches are asked for by a flag, and types by flags and a constraint on every layer.

8.6 has no strongly typed networks. A flag alone would let the builder run any layer in float16, also those
that the graph keeps in float32; so every layer is bound to the type that the graph gives its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorrt as trt

__all__ = ["TYPING", "create_context", "create_network", "place_of", "set_types", "watch"]

TYPING = "bound layer by layer"


def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    """An empty network whose tensors have their batch axis."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def set_types(network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
    """Bind every layer that computes with floats to the type of the graph."""
    # Contexts of one plan share a profile only where this is on; later versions always allow it.
    config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    quantised = _quantised(layers)
    if quantised:
        config.set_flag(trt.BuilderFlag.INT8)
    if not any(trt.DataType.HALF in _types(layer) for layer in layers):
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    untyped = (
        trt.LayerType.CONSTANT,
        trt.LayerType.SHAPE,
        trt.LayerType.CAST,
        trt.LayerType.TRIP_LIMIT,
        trt.LayerType.ITERATOR,
    )
    for layer in layers:
        if layer.num_outputs == 0 or layer.type in untyped or layer.name in quantised:
            continue
        kind = layer.get_output(0).dtype
        if kind in (trt.DataType.HALF, trt.DataType.FLOAT):
            layer.precision = kind
            layer.set_output_type(0, kind)


def _types(layer: trt.ILayer) -> list[trt.DataType]:
    return [layer.get_output(i).dtype for i in range(layer.num_outputs)]


def _quantised(layers: Sequence[trt.ILayer]) -> set[str]:
    """Names of the layers that quantise, and of those beside them, which explicit quantisation types."""
    borders = [layer for layer in layers if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)]
    found = {layer.name for layer in borders}
    into = {layer.get_input(0).name for layer in borders if layer.type == trt.LayerType.QUANTIZE}
    out = {layer.get_output(0).name for layer in borders if layer.type == trt.LayerType.DEQUANTIZE}
    for layer in layers:
        reads = {tensor.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None}
        makes = {layer.get_output(i).name for i in range(layer.num_outputs)}
        if reads & out or makes & into:
            found.add(layer.name)
    return found


def place_of(error: trt.ParserError) -> str:  # noqa: ARG001
    """Nothing: this version's errors do not name their node."""
    return ""


def create_context(engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
    """A context; its memory is that of the plan's largest profile, whichever it runs."""
    return engine.create_execution_context()


def watch(config: trt.IBuilderConfig, report: Callable[[float, str], None]) -> object:  # noqa: ARG001
    """8.6 does not tell how far a build has come."""
    return None
