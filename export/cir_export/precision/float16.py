"""Float16 graphs, and how to see on a CPU what their roundings do.

The conversion is `onnxruntime.transformers.float16` (MIT, released with every ONNX Runtime, which a bundle
needs anyway; onnxconverter-common, where it comes from, sees a release a year). It surrounds every float32
node with casts of its own, so what two such nodes hand to each other would be rounded between them; those
pairs of casts are taken out again here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from cir_export.checking import check_nodes
from cir_export.precision.held import Held, becomes, values_of
from cir_export.quiet import quieter
from cir_export.weights import key_of, put_inside
from cir_infer.errors import ExportError

__all__ = ["rounded", "to_float16"]

_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT
_MAX = float(np.finfo(np.float16).max)
_EXACT = {
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Relu",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators that only move or select values: what goes in rounded comes out rounded."""


def to_float16(model: ModelProto, float32: Collection[str], held: Held | None = None) -> ModelProto:
    """A copy whose weights and arithmetic are float16, except for the nodes named.

    Inputs and outputs keep their types.

    Args:
        model: a float32 graph in opset 17 whose nodes have names of their own.
        float32: nodes that stay float32.
        held: where weights are that the graph leaves out.

    Raises:
        ExportError: a weight exceeds the range of float16, or the converter fails.
    """
    _check_range(model, float32, held)
    copy: ModelProto = onnx.shape_inference.infer_shapes(model)
    left_out = _with_stand_ins(copy)
    try:
        with quieter("onnxruntime.transformers.float16"):
            # `float32` says all of it; the converter's own list of operators is about old runtimes.
            converted: ModelProto = convert_float_to_float16(
                copy,
                keep_io_types=True,
                disable_shape_infer=True,  # the stand-ins have no shapes
                op_block_list=[],
                node_block_list=list(float32),
            )
    except Exception as error:  # it checks nothing and fails in any way
        raise ExportError(f"the float16 converter of ONNX Runtime fails: {error}") from error
    _restore(converted, left_out)
    _drop_repeated(converted)
    _sort(converted)
    _merge_casts(converted)
    _share_casts(converted)
    _drop_unused_casts(converted)
    del converted.graph.value_info[:]
    _check(converted)
    return converted


def rounded(model: ModelProto) -> ModelProto:
    """A float32 graph that computes what a float16 graph computes where float16 is native.

    ONNX Runtime has few float16 kernels for CPUs. It computes in float32 and leaves out the roundings
    between two such nodes, so an overflow on the GPU would pass unseen. Here every value that the float16
    graph stores in float16 is rounded explicitly; sums inside a layer are float32, as tensor cores have them.

    Args:
        model: from `to_float16`.
    """
    half = {name for name, kind in _types(model).items() if kind == _HALF}
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == _HALF:
            becomes(tensor, "float32")
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _HALF:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
        nodes.append(node)
        stored = [name for name in node.output if name in half]
        if node.op_type == "Cast" and stored:
            node.attribute[0].i = _FULL
        if node.op_type in _EXACT:
            continue
        for name in stored:
            index = list(node.output).index(name)
            node.output[index] = f"{name}/exact"
            nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=_HALF))
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=_FULL))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _with_stand_ins(model: ModelProto) -> dict[str, TensorProto]:
    """Puts constants without an element where weights are left out; gives what stood there, by name.

    The converter reads the values of all that it converts.
    """
    found: dict[str, TensorProto] = {}
    for tensor in model.graph.initializer:
        if key_of(tensor) is not None:
            found[tensor.name] = TensorProto.FromString(tensor.SerializeToString())
            tensor.dims[:] = [0]
            put_inside(tensor, b"")
    return found


def _restore(model: ModelProto, left_out: Mapping[str, TensorProto]) -> None:
    """Puts the weights that are left out back, in the type that the converter has given their stand-ins."""
    for tensor in model.graph.initializer:
        if tensor.name in left_out:
            lowered = tensor.data_type == _HALF
            tensor.CopyFrom(left_out[tensor.name])
            if lowered:
                becomes(tensor, "float16")


def _check_range(model: ModelProto, float32: Collection[str], held: Held | None) -> None:
    """The converter would clamp what does not fit, and say nothing."""
    used = {name: node for node in model.graph.node if node.name not in float32 for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in used and tensor.data_type == _FULL:
            largest = _largest(values_of(tensor, held))
            if largest > _MAX:
                raise ExportError(
                    f"weight {tensor.name} holds {largest:.3g} and float16 ends at {_MAX:.0f}; keep its "
                    "layer in float32 with --keep-float32"
                )


def _largest(values: npt.NDArray[np.float32]) -> float:
    """Of the finite ones, without their signs; one part after the other, for it makes arrays of its own."""
    parts = np.array_split(values.reshape(-1), max(1, values.size >> 20))
    return max(float(np.abs(part[np.isfinite(part)]).max(initial=0.0)) for part in parts)


def _merge_casts(model: ModelProto) -> None:
    """Lets a float32 node read what another computed, not its copy that went through float16."""
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    full = {name for name, kind in _types(model).items() if kind == _FULL}
    exact: dict[str, str] = {}  # tensor -> the float32 tensor that it is a rounded copy of
    for node in graph.node:
        before = producer.get(node.input[0]) if node.op_type == "Cast" else None
        if before is None or before.op_type != "Cast" or before.input[0] not in full:
            continue
        if (_to(before), _to(node)) == (_HALF, _FULL):
            exact[node.output[0]] = before.input[0]
    for output in graph.output:
        source = exact.pop(output.name, "")
        if source in producer:  # a graph's output keeps its name, so the exact tensor takes it
            producer[output.name].output[0] = f"{output.name}/rounded"
            for node in graph.node:
                node.output[:] = [output.name if name == source else name for name in node.output]
            exact = {name: output.name if other == source else other for name, other in exact.items()}
            exact[source] = output.name
    for node in graph.node:
        node.input[:] = [exact.get(name, name) for name in node.input]


def _share_casts(model: ModelProto) -> None:
    """One cast for all that read it; the converter of ONNX Runtime 1.23 writes one for each reader."""
    first: dict[tuple[str, int], str] = {}
    shared: dict[str, str] = {}
    for node in model.graph.node:
        node.input[:] = [shared.get(name, name) for name in node.input]
        if node.op_type == "Cast":
            shared[node.output[0]] = first.setdefault((node.input[0], _to(node)), node.output[0])


def _types(model: ModelProto) -> dict[str, int]:
    """Element types of the tensors between nodes and of the graph's inputs."""
    typed = onnx.shape_inference.infer_shapes(model)
    values = (*typed.graph.value_info, *typed.graph.input)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _drop_repeated(model: ModelProto) -> None:
    """The converter writes a cast once for each time that it is read."""
    unique = {(node.op_type, *node.output): node for node in model.graph.node}
    del model.graph.node[:]
    model.graph.node.extend(unique.values())


def _to(node: NodeProto) -> int:
    to: int = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    return to


def _drop_unused_casts(model: ModelProto) -> None:
    graph = model.graph
    needed = {value.name for value in graph.output}
    while True:
        used = needed | {name for node in graph.node for name in node.input}
        unused = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)


def _sort(model: ModelProto) -> None:
    """Every node after those that it reads, as a graph must have them; otherwise in the given order."""
    graph = model.graph
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting = list(graph.node)
    ordered: list[NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in known for name in node.input):
                known.update(node.output)
                ordered.append(node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ExportError(f"the float16 converter left {later[0].name} without its input")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


def _check(model: ModelProto) -> None:
    try:
        check_nodes(model)
    except Exception as error:  # ValidationError, InferenceError and RuntimeError
        raise ExportError(f"the float16 converter wrote an invalid graph: {error}") from error
