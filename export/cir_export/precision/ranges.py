"""The smallest and the largest value of tensors in a graph, over images or texts.

As ONNX Runtime's calibrator has them, which loads the whole graph to do it: here weights stay mapped, only
what leads to those tensors runs, and of each no more leaves the runtime than two numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import TensorData

from cir_export.checking import drop_unread, names_read
from cir_export.memory import give_back
from cir_export.precision.held import Held, values_of
from cir_export.weights import key_of
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import NUMBERS
from cir_infer.errors import ExportError
from cir_infer.runtime.graph import Array
from cir_infer.runtime.kept.weights import with_weights, without_weights
from cir_infer.runtime.onnx import OnnxBackend

__all__ = ["extremes"]

_OURS = "cir_export/extremes"
"""Beginning of the names of what is added; the last output has this name."""


def extremes(
    model: ModelProto, nodes: Collection[str], feeds: Iterable[Mapping[str, Array]], held: Held | None
) -> dict[str, TensorData]:
    """The range of each float32 tensor that the named nodes read or write, by name; NaN and infinities too.

    Args:
        model: a float32 graph of images or texts whose nodes have names of their own.
        nodes: some of them.
        feeds: batches, by the names of the graph's inputs.
        held: where weights are that the graph leaves out.

    Raises:
        ExportError: there are no batches.
        BundleError, DeviceError: the graph does not run.
    """
    watching, names = _watching(model, nodes)
    # As it is, and not as it would be optimised: these are the values that the quantiser asks about.
    graph = OnnxBackend("cpu").load_optimised("image", _in_place(watching, held))
    inputs = [tensor.name for tensor in graph.inputs]
    found = [graph.run({name: batch[name] for name in inputs})[_OURS][0] for batch in feeds]
    del graph
    give_back()
    if not found:
        raise ExportError("there are no images or texts to find int8's ranges with")
    seen = np.stack(found).reshape(len(found), 2, len(names))
    lowest, highest = seen[:, 0].min(axis=0), seen[:, 1].max(axis=0)
    return {
        name: TensorData(lowest=lowest[number : number + 1], highest=highest[number : number + 1])
        for number, name in enumerate(names)
    }


def _in_place(model: ModelProto, held: Held | None) -> Model:
    """A graph as runtimes take it that compute with the weights where they lie; the graph loses some."""
    weights: list[tuple[str, Array]] = []
    for number in reversed(range(len(model.graph.initializer))):
        tensor = model.graph.initializer[number]
        if key_of(tensor) is not None:
            weights.append((tensor.name, values_of(tensor, held)))
            del model.graph.initializer[number]
    data, inside = without_weights(model.SerializeToString())
    weights += [(w.name, np.frombuffer(w.data, NUMBERS[w.kind]).reshape(w.shape)) for w in inside]
    return with_weights(data, weights)


def _watching(model: ModelProto, nodes: Collection[str]) -> tuple[ModelProto, list[str]]:
    """A graph that gives the extremes of tensors, float32 (n, 2 T), and their T names."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*typed.value_info, *typed.input, *typed.output)
    }
    del typed
    touched = (
        name for node in model.graph.node if node.name in nodes for name in (*node.input, *node.output)
    )
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [
        name
        for name in dict.fromkeys(touched)
        if kinds.get(name) == TensorProto.FLOAT and name not in constants
    ]
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _keep_only(copy, names)
    ones, first = f"{_OURS}/one", f"{_OURS}/first"
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), ones))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), first))
    added: list[NodeProto] = []
    for kind in ("ReduceMin", "ReduceMax"):
        for number, name in enumerate(names):
            one = f"{_OURS}/{kind}/{number}"
            added.append(helper.make_node(kind, [name], [f"{one}/alone"], keepdims=0))
            added.append(helper.make_node("Reshape", [f"{one}/alone", ones], [one]))
    ends = [node.output[0] for node in added if node.op_type == "Reshape"]
    # One row for each image, as every graph gives; the rows of a batch are the same.
    count, shape = f"{_OURS}/count", f"{_OURS}/shape"
    added += [
        helper.make_node("Concat", ends, [f"{_OURS}/row"], axis=0),
        helper.make_node("Unsqueeze", [f"{_OURS}/row", first], [f"{_OURS}/rows"]),
        helper.make_node("Shape", [graph.input[0].name], [f"{_OURS}/sizes"]),
        helper.make_node("Gather", [f"{_OURS}/sizes", first], [count]),
        helper.make_node("Concat", [count, ones], [shape], axis=0),
        helper.make_node("Expand", [f"{_OURS}/rows", shape], [_OURS]),
    ]
    graph.node.extend(added)
    graph.output.append(helper.make_tensor_value_info(_OURS, TensorProto.FLOAT, [None, len(ends)]))
    return copy, names


def _keep_only(model: ModelProto, names: Collection[str]) -> None:
    """Leaves in a graph what leads to tensors, and no output."""
    graph = model.graph
    needed = set(names)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_read([node]))
    kept.reverse()
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    for field in ("node", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    drop_unread(model)
