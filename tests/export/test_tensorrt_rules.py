"""What TensorRT's parser asks of a graph, held for what the exporter writes: no GPU needed to know it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from cir_export.checkpoints import load_trained
from cir_export.graphs import EXPLAIN, export, export_graphs
from cir_export.models import build_model
from cir_export.models.encoders.resnet import RESNETS
from cir_export.precision.float16 import to_float16
from cir_export.precision.islands import float32_islands
from cir_export.precision.layers import name_nodes
from cir_export.preprocessing import plain_resize
from tests.export.once import Once
from tests.export.tiny import config

ROOT = Path(__file__).parents[2]
OPERATORS: dict[str, Any] = json.loads((Path(__file__).parent / "tensorrt_operators.json").read_text())
DYNAMIC = {
    "image": {"image": ["n", None, None, None]},
    "text": {"tokens": ["n", "t"], "lengths": ["n"]},
    "reference": {"image": ["n", None, None, None]},
    "compose": {"reference": ["n", None], "text": ["n", None]},
}


OWN = {"resnet18-lstm": {"image", "text"}, "resnet50-bigru": {"image"}, "parameter-hashing": {"compose"}}
"""Graphs of other operators than the committed model has; its own stand for the rest: each takes seconds."""


def graphs_of(model: str, once: Once) -> dict[str, bytes]:
    if model == "artemis-scenes":
        trained = load_trained([ROOT / "models" / model / "model.pt"])
        return once.graphs(trained.model, trained.image)
    every = export._graphs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_graphs", lambda *given: [g for g in every(*given) if g.name in OWN[model]])
        return own_graphs_of(model)


def own_graphs_of(model: str) -> dict[str, bytes]:
    if model == "parameter-hashing":
        # Large enough that the exporter keeps the hash as it is.
        image = {"trunk": "small", "size": 24, "pooling": "grid", "channels": [4, 6, 64]}
        hashing = config(model, image=image, embedding_dim=128)
        return export_graphs(build_model(hashing).eval(), plain_resize(24))
    trunk, encoder = model.split("-")
    torch.manual_seed(0)
    image = {"trunk": trunk, "size": 64, "pooling": "gem"}
    text = {"encoder": encoder, "vocabulary_size": 30, "word_dim": 10}
    text |= {"hidden": 12} if encoder == "lstm" else {}
    with pytest.MonkeyPatch.context() as patch:
        # Blocks of every kind, with a shortcut and without; more of them have no other operators.
        patch.setitem(RESNETS, trunk, RESNETS[trunk]._replace(depths=(2, 1, 1, 1)))
        return export_graphs(build_model(config(image=image, text=text)).eval(), plain_resize(64))


@functools.cache
def exported(model: str, once: Once) -> dict[str, Any]:
    # The continuation that explains runs on ONNX Runtime alone.
    found = graphs_of(model, once)
    own = {name: onnx.load_from_string(found[name]) for name in found if name != EXPLAIN}
    return {**exported("artemis-scenes", once), **own} if model in OWN else own


def halved(graph: Any) -> Any:
    """As `cir-export --precision float16` writes it."""
    named = onnx.ModelProto()
    named.CopyFrom(graph)
    name_nodes(named)
    return to_float16(named, float32_islands(named))


@pytest.fixture(
    scope="module",
    params=[
        "artemis-scenes",
        "artemis-scenes float16",
        "resnet18-lstm",
        "resnet50-bigru float16",
        "parameter-hashing",
    ],
)
def graphs(request: pytest.FixtureRequest, exported_once: Once) -> dict[str, Any]:
    model, _, precision = request.param.partition(" ")
    found = dict(exported(model, exported_once))
    if precision:
        found.update({name: halved(found[name]) for name in ("image", "text")})
    return found


def nodes(graph: Any) -> Iterator[Any]:
    """All nodes, also those inside of others."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def test_opset_operators_and_control_flow(graphs: dict[str, Any]) -> None:
    for model in graphs.values():
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        used = {node.op_type for node in nodes(model.graph)}
        assert not used & {"If", "Loop", "Scan"}
        for version in ("8.6", "10"):
            assert used <= set(OPERATORS[version]["operators"]), version


def test_types_are_written_out(graphs: dict[str, Any]) -> None:
    """A strongly typed network has no casts of its own: both sides of an operator are of one type."""
    for model in graphs.values():
        onnx.checker.check_model(model, full_check=True)
        kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info:
            kinds[value.name] = value.type.tensor_type.elem_type
        kinds.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
        for node in nodes(model.graph):
            given = {kinds[name] for name in node.input if kinds.get(name) in floats}
            assert len(given) <= 1, (node.op_type, node.name)


def test_only_batches_and_lengths_are_dynamic(graphs: dict[str, Any]) -> None:
    for name, model in graphs.items():
        for value in model.graph.input:
            dims = [dim.dim_param or None for dim in value.type.tensor_type.shape.dim]
            assert dims == DYNAMIC[name][value.name]


def test_bytes_are_cast_before_anything_else(graphs: dict[str, Any]) -> None:
    """TensorRT has uint8 for inputs only: the one operator that reads its values is Cast."""
    graph = graphs["image"].graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    readers = [node for node in graph.node if graph.input[0].name in node.input]
    assert [node.op_type for node in readers if node.op_type != "Shape"] == ["Cast"]


def test_what_tensorrt_wants_constant_is_constant(graphs: dict[str, Any]) -> None:
    for model in graphs.values():
        constants = {tensor.name for tensor in model.graph.initializer}
        constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
        for node in nodes(model.graph):
            if node.op_type in ("ReduceSum", "Squeeze", "Unsqueeze") and len(node.input) > 1:
                assert node.input[1] in constants, node.op_type


def test_constants_have_types_that_tensorrt_has(graphs: dict[str, Any]) -> None:
    """It takes int8 for a quantised weight, and has no other small or unsigned integers."""
    held = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    for model in graphs.values():
        assert {tensor.data_type for tensor in model.graph.initializer} <= set(held)


def test_recurrent_operators_are_in_the_form_that_is_imported(graphs: dict[str, Any]) -> None:
    found = [node for node in nodes(graphs["text"].graph) if node.op_type in ("GRU", "LSTM")]
    assert len(found) == 1
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in found[0].attribute}
    assert attributes.get("layout", 0) == 0 and attributes.get("input_forget", 0) == 0
    assert "activations" not in attributes and "clip" not in attributes


def test_weights_are_inside_and_finite(graphs: dict[str, Any]) -> None:
    for model in graphs.values():
        for tensor in model.graph.initializer:
            assert tensor.data_location == TensorProto.DEFAULT
            value = numpy_helper.to_array(tensor)
            assert not np.issubdtype(value.dtype, np.floating) or np.isfinite(value).all()
