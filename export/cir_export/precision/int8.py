"""Int8 graphs: QuantizeLinear and DequantizeLinear around the layers, with calibrated ranges.

Two forms, because no form serves both: TensorRT wants signed activations around zero and weights in float32
behind a Q/DQ pair of their own (before TensorRT 10), and runs nothing else. ONNX Runtime's CPU kernels fuse a
ReLU only into unsigned activations whose zero is 0; the form for TensorRT runs slower there than float32
does (docs/precision.md has figures).

Where the pairs stand and which scales they have is said by ONNX Runtime's quantiser. It would hold every
weight several times, so it is given the extremes of each channel in place of a product's weight, from which
alone it takes the scale. The weight itself is made from that scale when it is written (`Held`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorData

from cir_export.checking import check_nodes, drop_unread
from cir_export.precision.held import Held, becomes, int8_form, values_of
from cir_export.precision.layers import owners_of, shortest_names
from cir_export.precision.pixel_rows import in_rows_of_pixels
from cir_export.precision.ranges import extremes
from cir_infer.errors import CirError, ExportError
from cir_infer.runtime.graph import Array

__all__ = ["FORMS", "Form", "only", "passing", "quantisable", "to_int8"]

Form = Literal["cpu", "tensorrt"]
FORMS: tuple[Form, ...] = ("cpu", "tensorrt")

_PRODUCTS = ["Conv", "Gemm", "MatMul"]
_PASSING = ["Add", "AveragePool", "MaxPool", "Relu"]
"""Between convolutions these stay in int8 on the CPU, where leaving it costs more than they do."""

_OPTIONS: dict[Form, dict[str, Any]] = {
    # The last product of an encoder makes the embedding: its output stays float32.
    "cpu": {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    "tensorrt": {
        "ActivationSymmetric": True,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": _PRODUCTS,
    },
}


def quantisable(model: ModelProto, layers: dict[str, str]) -> dict[str, str]:
    """Those of the layers (names by node name) that int8 can hold: products with constant weights.

    But for those of several matrices, where ONNX Runtime fails at a scale for each column, and those with
    factors, which the quantiser forgets.
    """
    nodes = {node.name: node for node in model.graph.node}
    several = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    return {
        name: layer
        for name, layer in layers.items()
        if nodes[name].op_type == "Conv"
        or (nodes[name].op_type == "MatMul" and several.isdisjoint(nodes[name].input))
        or (nodes[name].op_type == "Gemm" and not _has_factors(nodes[name]))
    }


def _has_factors(gemm: NodeProto) -> bool:
    return any(attribute.name in ("alpha", "beta") and attribute.f != 1 for attribute in gemm.attribute)


def to_int8(
    model: ModelProto,
    layers: dict[str, str],
    float32: Collection[str],
    feeds: Iterable[Mapping[str, Array]],
    form: Form,
    held: Held | None = None,
) -> ModelProto:
    """A copy whose layers compute in int8: weights per channel, activations per tensor.

    Args:
        model: a float32 graph of images or texts in opset 17 whose nodes have names of their own.
        layers: its quantisable layers, names by node name.
        float32: names of layers that stay float32.
        feeds: batches, by the names of the graph's inputs; their extremes become the ranges.
        form: what will run it.
        held: where weights are that the graph leaves out.

    Raises:
        ExportError: the quantiser fails, or a value that int8 would hold is NaN or infinite.
    """
    products = [name for name, layer in layers.items() if layer not in float32]
    if not products:
        raise ExportError("every layer would stay float32; there is nothing left for int8")
    nodes = [*products, *(passing(model, layers, float32) if form == "cpu" else [])]
    found = extremes(model, nodes, feeds, held)
    _check_finite(found, model, set(nodes), layers)
    copy: ModelProto = onnx.shape_inference.infer_shapes(model)
    helper.set_model_props(copy, {"onnx.infer": "onnxruntime.quant"})  # or it would infer shapes again
    stood_for = _with_stand_ins(copy, set(nodes), held)
    try:
        with _quiet():
            quantiser = QDQQuantizer(
                copy,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8 if form == "cpu" else QuantType.QInt8,
                tensors_range=found,
                nodes_to_quantize=nodes,
                nodes_to_exclude=[],
                op_types_to_quantize=[*_PRODUCTS, *_PASSING],
                extra_options=dict(_OPTIONS[form]),
            )
            quantised: ModelProto = quantiser.quantize_model()
            quantiser.model.topological_sort()
        _restore(quantised, stood_for)
        if form == "cpu":
            _let_others_read(quantised, model, set(nodes))
        _strip(quantised)
        if form == "cpu":
            in_rows_of_pixels(quantised)
        check_nodes(quantised)
    except CirError:
        raise
    except Exception as error:  # it fails in any way; an interruption is no Exception
        raise ExportError(f"the quantiser of ONNX Runtime fails: {_first_line(error)}") from error
    return quantised


def _check_finite(
    found: Mapping[str, TensorData], model: ModelProto, nodes: Collection[str], layers: dict[str, str]
) -> None:
    odd = {name for name, seen in found.items() if not np.isfinite([seen.lowest, seen.highest]).all()}
    if not odd:
        return
    owners = owners_of(model, layers)
    touching = [
        n.name for n in model.graph.node if n.name in nodes and odd.intersection([*n.input, *n.output])
    ]
    names = shortest_names(list(dict.fromkeys(owners[name] for name in touching)), list(layers.values()))
    raise ExportError(
        "some of the images or texts make values NaN or infinite, which int8 has no range for; keep the "
        f"layers that read or give them in float32 (--keep-float32 {' '.join(names)})"
    )


def only(quantised: ModelProto, original: ModelProto, nodes: Collection[str]) -> ModelProto:
    """The float32 graph in which the named nodes alone read what the int8 graph lets them read.

    And what they give is read as it is read there; a ReLU that the range takes the place of is still there.
    """
    copy = ModelProto()
    copy.CopyFrom(original)
    int8 = {node.name: node for node in quantised.graph.node}
    producer = {name: node for node in quantised.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    given = {name for node in copy.graph.node if node.name in nodes for name in node.output}
    needed: set[str] = set()
    ordered: list[NodeProto] = []
    for node in copy.graph.node:
        read = [
            (index, name)
            for index, name in enumerate(int8[node.name].input if node.name in int8 else ())
            if node.name in nodes or node.input[index] in given
        ]
        for index, name in read:
            pair = (
                [producer[name]] if name in producer and producer[name].op_type == "DequantizeLinear" else []
            )
            if pair and pair[0].input[0] in producer:
                pair.insert(0, producer[pair[0].input[0]])
            for number, step in enumerate(pair):
                added = NodeProto()
                added.CopyFrom(step)
                if step.input[0] not in constants:
                    added.input[0] = node.input[index]
                added.name = added.output[0] = f"{node.name}/{index}/{number}"
                node.input[index] = added.output[0]
                needed.update(added.input)
                ordered.append(added)
        ordered.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(ordered)
    held = {tensor.name for tensor in copy.graph.initializer}
    copy.graph.initializer.extend(constants[name] for name in sorted(needed & set(constants) - held))
    drop_unread(copy)  # weights whose one reader reads int8 now
    return copy


def passing(model: ModelProto, layers: dict[str, str], float32: Collection[str]) -> list[str]:
    """What stands between quantised convolutions.

    A ViT has one, with nothing after it to stay in int8 for: what is added there are the class token and
    places, whose small values the range of the patches would round away (measured: a cosine of 0.87).
    """
    kinds = {layers[node.name]: node.op_type for node in model.graph.node if node.name in layers}
    if sum(kind == "Conv" and layer not in float32 for layer, kind in kinds.items()) < 2:
        return []
    owners = owners_of(model, layers)
    found = []
    for node in model.graph.node:
        owner = owners[node.name]
        if node.op_type in _PASSING and kinds.get(owner) == "Conv" and owner not in float32:
            found.append(node.name)
    return found


def _with_stand_ins(model: ModelProto, nodes: Collection[str], held: Held | None) -> dict[str, TensorProto]:
    """Puts the extremes of its channels in a weight's place; gives what stood there, by name.

    What else the quantised nodes read is given its values, for the quantiser reads them.
    """
    axes: dict[str, set[int | None]] = {}
    for node in model.graph.node:
        if node.name in nodes:
            for index, name in enumerate(node.input):
                axes.setdefault(name, set()).add(_axis(node, index))
    stood_for: dict[str, TensorProto] = {}
    for tensor in model.graph.initializer:
        read_along = axes.get(tensor.name)
        if read_along is None or tensor.data_type != TensorProto.FLOAT:
            continue
        values = values_of(tensor, held)
        (axis, *others) = read_along
        name = tensor.name
        if axis is not None and not others and axis < values.ndim >= 2 and values.size:
            stood_for[name] = TensorProto.FromString(tensor.SerializeToString())
            tensor.CopyFrom(numpy_helper.from_array(_extremes_along(values, axis), name))
        else:
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return stood_for


def _axis(node: NodeProto, index: int) -> int | None:
    """Along which axis an input of a node is quantised channel by channel; None for what is no weight."""
    if node.op_type == "MatMul":
        return 1
    if index != 1 or node.op_type not in _PRODUCTS:
        return None
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _extremes_along(values: Array, axis: int) -> Array:
    """The smallest and the largest value of each channel, in an array with as many axes and channels."""
    rest = tuple(number for number in range(values.ndim) if number != axis)
    both = np.stack([values.min(rest), values.max(rest)])
    shape = [1] * values.ndim
    shape[axis], shape[rest[0]] = values.shape[axis], 2
    return np.ascontiguousarray((both if rest[0] < axis else both.T).reshape(shape))


def _restore(model: ModelProto, stood_for: Mapping[str, TensorProto]) -> None:
    """Puts the weights back, or what they are in int8 with the scales that their extremes have got."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for name, tensor in stood_for.items():
        if name in constants:
            constants[name].CopyFrom(tensor)
        quantised = constants.get(f"{name}_quantized")
        if quantised is None:
            continue
        reader = readers[quantised.name]
        (axis,) = (attribute.i for attribute in reader.attribute if attribute.name == "axis")
        scale, zero = (numpy_helper.to_array(constants[other]) for other in reader.input[1:])
        if zero.any():
            raise ExportError(f"the quantiser gave weight {name} a zero that is none")
        own_name = quantised.name
        quantised.CopyFrom(tensor)
        quantised.name = own_name
        becomes(quantised, int8_form(scale, tensor.dims, axis))


def _let_others_read(quantised: ModelProto, original: ModelProto, nodes: Collection[str]) -> None:
    """Lets what is not quantised read values as they are, in place, where quantised nodes only read them.

    The quantiser gives all readers of such a value what is left of it: what a transformer hands on beside its
    products, from block to block, was rounded in each. What a convolution gives is read rounded by all, for
    ONNX Runtime makes it in int8.
    """
    free = {value.name for value in original.graph.input}
    for node in original.graph.node:
        if node.name not in nodes or node.op_type in ("Gemm", "MatMul"):
            free.update(node.output)
    before = {node.name: node for node in original.graph.node}
    for node in quantised.graph.node:
        if node.name in before and node.name not in nodes:
            for index, name in enumerate(before[node.name].input):
                if name in free:
                    node.input[index] = name


def _strip(model: ModelProto) -> None:
    """Drops the quantiser's notes, so that equal input gives equal bytes."""
    model.producer_name, model.producer_version = "", ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        _strip_node(node)
    for tensor in model.graph.initializer:
        tensor.ClearField("doc_string")


def _strip_node(node: NodeProto) -> None:
    node.doc_string = ""
    del node.metadata_props[:]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice about a pre-processing that the exporter has already done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
