"""Int8 graphs: QuantizeLinear and DequantizeLinear around the layers, with ranges calibrated on images.

Two forms, because no form serves both: TensorRT wants signed activations around zero and weights in float32
behind a Q/DQ pair of their own (before TensorRT 10), and runs nothing else. ONNX Runtime's CPU kernels fuse a
ReLU only into unsigned activations whose zero is 0; the form for TensorRT runs slower there than float32
does (docs/precision.md has figures).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from cir_export.precision.held import Held
from cir_export.precision.layers import owners_of
from cir_infer.errors import CirError, ExportError
from cir_infer.runtime.graph import Array

__all__ = ["FORMS", "Form", "only", "quantisable", "to_int8"]

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
    """Those of the layers (names by node name) that int8 can hold: products with constant weights."""
    nodes = {node.name: node for node in model.graph.node}
    return {name: layer for name, layer in layers.items() if nodes[name].op_type in _PRODUCTS}


def to_int8(
    model: ModelProto,
    layers: dict[str, str],
    float32: Collection[str],
    images: Iterable[Array],
    form: Form,
    held: Held | None = None,
) -> ModelProto:
    """A copy whose layers compute in int8: weights per channel, activations per tensor.

    Args:
        model: a float32 image graph in opset 17 whose nodes have names of their own.
        layers: its quantisable layers, names by node name.
        float32: names of layers that stay float32.
        images: prepared batches, what the graph's input takes; their extremes become the ranges.
        form: what will run it.
        held: where weights are that the graph leaves out.

    Raises:
        ExportError: the quantiser fails, or the graph would hold more than 2 GB itself.
    """
    products = [name for name, layer in layers.items() if layer not in float32]
    if not products:
        raise ExportError("every layer would stay float32; there is nothing left for int8")
    nodes = [*products, *(_passing(model, layers, float32) if form == "cpu" else [])]
    with tempfile.TemporaryDirectory(prefix="cir-int8-") as scratch, _quiet():
        path, source = Path(scratch) / "int8.onnx", Path(scratch) / "float32.onnx"
        # As a file: in memory it would be there once more, beside the two of the quantiser and its session.
        source.write_bytes((model if held is None else held.filled(model)).SerializeToString())
        try:
            quantize_static(
                str(source),
                str(path),
                _Reader(model.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*_PRODUCTS, *_PASSING],
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=QuantType.QUInt8 if form == "cpu" else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=dict(_OPTIONS[form]),
            )
        except CirError:  # an image that cannot be read
            raise
        except Exception as error:  # it fails in any way; an interruption is no Exception
            raise ExportError(f"the quantiser of ONNX Runtime fails: {_first_line(error)}") from error
        quantised = onnx.load(path)
    _strip(quantised)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def only(quantised: ModelProto, original: ModelProto, nodes: Collection[str]) -> ModelProto:
    """The float32 graph in which the named nodes alone read what the int8 graph lets them read."""
    copy = ModelProto()
    copy.CopyFrom(original)
    int8 = {node.name: node for node in quantised.graph.node}
    producer = {name: node for node in quantised.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    needed: set[str] = set()
    ordered: list[NodeProto] = []
    for node in copy.graph.node:
        inputs = list(int8[node.name].input) if node.name in nodes else []
        for index, name in enumerate(inputs):
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
    return copy


def _passing(model: ModelProto, layers: dict[str, str], float32: Collection[str]) -> list[str]:
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


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands prepared batches to the quantiser."""

    def __init__(self, name: str, batches: Iterable[Array]) -> None:
        self._name = name
        self._batches: Iterator[Array] = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _strip(model: ModelProto) -> None:
    """Drops the quantiser's notes, so that equal input gives equal bytes."""
    model.producer_name, model.producer_version = "", ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        _strip_node(node)


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
