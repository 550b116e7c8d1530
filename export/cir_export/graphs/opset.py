"""Brings a graph from opset 18, the exporter's lowest, to opset 17, which TensorRT 8.6 to 11 all read.

What has an equal in opset 17 is rewritten; every node is then held against the operators of opset 17, and
what has none is refused, all of it at once and with the module that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper

from cir_export.checking import check_nodes, drop_unread
from cir_export.graphs.expansions import write_out
from cir_export.graphs.origin import origin
from cir_infer.errors import ExportError

__all__ = ["OPSET", "lower_opset"]

OPSET = 17
_IR_VERSION = 8

_REDUCTIONS = {
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
"""Operators whose axes became an input in opset 18."""

_NEUTRAL: dict[tuple[str, str], tuple[object, ...]] = {("Split", "num_outputs"): ()}
"""Values of new attributes that mean what opset 17 does without them, beside the default; () for any value.

Opset 17 splits evenly when it is told no sizes; opset 18 may leave a smaller rest, whose shape the check of
the whole graph refuses.
"""

_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}

_SHOWN = 8


def lower_opset(model: ModelProto) -> None:
    """Rewrites the nodes whose form changed in opset 18, in place.

    The exporter's notes on nodes, where they are still there, name the modules in an error.

    Raises:
        ExportError: the model has another opset, or nodes that opset 17 cannot express.
    """
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != OPSET + 1:
        raise ExportError(f"the exporter wrote opsets {versions}; expected {OPSET + 1}")
    write_out(model)
    constants = _constants(model)
    complaints = []
    for node in model.graph.node:
        complaint = _rewrite(node, constants) or _unknown(node)
        if complaint:
            complaints.append(f"{complaint}{origin(node)}")
    if complaints:
        # All of it at once: whoever ports a model wants the whole list.
        found = list(dict.fromkeys(complaints))
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ExportError(
            f"a graph of opset {OPSET}, which every TensorRT from 8.6 on reads, cannot hold "
            f"{'; '.join(found[:_SHOWN])}{more}; write it with other operators"
        )
    drop_unread(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = _IR_VERSION
    try:
        check_nodes(model)
    except Exception as error:  # ValidationError, InferenceError and RuntimeError
        raise ExportError(f"the graph is not valid in opset {OPSET}: {error}") from error


def _constants(model: ModelProto) -> dict[str, onnx.TensorProto]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _rewrite(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str | None:
    """Gives a node the form of opset 17; what is in the way, where something is."""
    if node.op_type in _REDUCTIONS:
        return _axes_to_attribute(node, constants)
    if node.op_type == "Pad" and len(node.input) > 3:
        if node.input[3]:
            return "Pad of some axes alone"
        del node.input[3:]
    return None


def _axes_to_attribute(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str | None:
    axes = None
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return f"{node.op_type} over axes that are computed"
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    if not axes and any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute):
        return f"{node.op_type} over no axes"
    del node.input[1:]
    _drop(node, "noop_with_empty_axes")
    if axes:
        node.attribute.append(helper.make_attribute("axes", axes))
    return None


def _unknown(node: NodeProto) -> str | None:
    """What opset 17 does not know of a node, once attributes of a neutral value are gone."""
    if node.domain:
        return f"{node.domain}.{node.op_type}"
    if node.op_type in _CONTROL_FLOW:
        return f"control flow ({node.op_type})"
    if node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.BFLOAT16 for a in node.attribute):
        return "bfloat16 (autocast, or .bfloat16())"
    try:
        known = defs.get_schema(node.op_type, OPSET, "")
    except defs.SchemaError:
        return node.op_type
    newer = defs.get_schema(node.op_type, OPSET + 1, "")
    for attribute in list(node.attribute):
        if attribute.name in known.attributes:
            continue
        value = helper.get_attribute_value(attribute)
        if not _neutral(node.op_type, attribute.name, value, newer):
            shown = value.decode(errors="replace") if isinstance(value, bytes) else value
            return f"{node.op_type} with {attribute.name} = {shown}"
        _drop(node, attribute.name)
    reduction = next((a.s for a in node.attribute if a.name == "reduction"), b"none")
    if node.op_type in ("ScatterElements", "ScatterND") and reduction not in (b"none", b"add", b"mul"):
        return f"{node.op_type} with reduction = {reduction.decode(errors='replace')}"
    return None


def _neutral(operator: str, name: str, value: object, schema: defs.OpSchema) -> bool:
    allowed = _NEUTRAL.get((operator, name))
    if allowed is not None:
        return not allowed or value in allowed
    default = schema.attributes[name].default_value if name in schema.attributes else None
    if default is None or not default.name:
        return value in (0, 0.0, b"") or (isinstance(value, list) and not value)
    return bool(value == helper.get_attribute_value(default))


def _drop(node: NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
