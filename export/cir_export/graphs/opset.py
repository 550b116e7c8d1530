"""Brings a graph from opset 18, the exporter's lowest, to opset 17, which TensorRT 8.6 to 11 all read."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from cir_infer.errors import ExportError

__all__ = ["OPSET", "lower_opset"]

OPSET = 17
_IR_VERSION = 8

_REDUCTIONS = {
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
"""Operators whose axes became an input in opset 18."""


def lower_opset(model: ModelProto) -> None:
    """Rewrites the nodes whose form changed in opset 18, in place.

    Raises:
        ExportError: the model has another opset, or a node that opset 17 cannot express.
    """
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != OPSET + 1:
        raise ExportError(f"the exporter wrote opsets {versions}; expected {OPSET + 1}")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if node.op_type in _REDUCTIONS:
            _axes_to_attribute(node, constants)
        elif node.op_type == "Split":
            _drop_num_outputs(node)
        elif (node.op_type == "Resize" and _has(node, "antialias", "axes", "keep_aspect_ratio_policy")) or (
            node.op_type == "Pad" and len(node.input) > 3 and node.input[3]
        ):
            raise ExportError(f"{node.op_type} in the form of opset 18 has no equal in opset {OPSET}")
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = _IR_VERSION
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and RuntimeError
        raise ExportError(f"the graph is not valid in opset {OPSET}: {error}") from error


def _axes_to_attribute(node: NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    axes = None
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            raise ExportError(f"{node.op_type} over axes that are computed has no equal in opset {OPSET}")
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    if not axes and any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute):
        raise ExportError(f"{node.op_type} over no axes has no equal in opset {OPSET}")
    del node.input[1:]
    kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if axes:
        node.attribute.append(helper.make_attribute("axes", axes))


def _drop_num_outputs(node: NodeProto) -> None:
    """Opset 17 splits evenly when it is told no sizes; opset 18 may leave a smaller rest."""
    if not _has(node, "num_outputs"):
        return
    kept = [attribute for attribute in node.attribute if attribute.name != "num_outputs"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _has(node: NodeProto, *names: str) -> bool:
    """Whether an attribute of that name has a value other than zero or nothing."""
    return any(
        attribute.name in names and helper.get_attribute_value(attribute) not in (0, b"stretch", b"", [])
        for attribute in node.attribute
    )
