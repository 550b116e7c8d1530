"""Which text graphs the recurrent kernel takes, and that it refuses every other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.runtime.recurrent.text_graph import NoKernelError, match_text_graph
from tests.bundles import text_graph
from tests.runtime.recurrent.graphs import recurrent_graph


def test_weights_are_taken_gate_by_gate() -> None:
    model = recurrent_graph("GRU", 2, hidden=4, width=3, out=5)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}
    text = match_text_graph(read_onnx_model(model))
    assert (text.kind, text.directions, text.hidden, text.out) == ("gru", 2, 4, 5)
    assert text.least_square == np.float32(1e-20) and not text.over_time
    np.testing.assert_array_equal(text.words, held["embed"])
    np.testing.assert_array_equal(text.input_weights[1, 2], held["W"][1, 8:12])
    np.testing.assert_array_equal(text.recurrent_weights[0, 1], held["R"][0, 4:8])
    np.testing.assert_array_equal(text.input_bias[1, 0], held["B"][1, :4] + held["B"][1, 12:16])
    np.testing.assert_array_equal(text.input_bias[1, 2], held["B"][1, 8:12])
    assert text.candidate_bias is not None and text.projection is not None
    np.testing.assert_array_equal(text.candidate_bias[1], held["B"][1, 20:24])
    np.testing.assert_array_equal(text.projection, held["project"])


def test_an_lstm_over_time() -> None:
    text = match_text_graph(read_onnx_model(recurrent_graph("LSTM", 1, over_time=True, out=4, unit=False)))
    assert (text.kind, text.over_time, text.least_square) == ("lstm", True, None)
    assert text.candidate_bias is None and text.input_bias.shape == (1, 4, 13)


def test_conversions_between_float_types_are_passed_over() -> None:
    """A float16 bundle's graph: the layer in float32, what is around it in float16."""
    model = onnx.load_from_string(recurrent_graph())
    table = next(t for t in model.graph.initializer if t.name == "embed")
    half = numpy_helper.to_array(table).astype(np.float16)
    table.CopyFrom(numpy_helper.from_array(half, "embed"))
    cast = helper.make_node("Cast", ["turned"], ["turned_wide"], to=TensorProto.FLOAT)
    layer = node_of(model, "GRU")
    layer.input[0] = "turned_wide"
    model.graph.node.insert(2, cast)
    text = match_text_graph(read_onnx_model(model.SerializeToString()))
    assert text.words.dtype == np.float32
    np.testing.assert_array_equal(text.words, half.astype(np.float32))


def put_together(first: str) -> Callable[[ModelProto], None]:
    """The shape of the last states as older exporters write it: from the number of texts and the width."""

    def change(model: ModelProto) -> None:
        found = next(t for t in model.graph.initializer if t.name == "flat")
        width = numpy_helper.to_array(found)[1:]
        found.CopyFrom(numpy_helper.from_array(width, "width"))
        axis = 1 if first == "tokens" else 0
        model.graph.node.insert(0, helper.make_node("Shape", [first], ["texts"], start=axis, end=axis + 1))
        model.graph.node.insert(1, helper.make_node("Concat", ["texts", "width"], ["flat"], axis=0))

    return change


def test_the_shape_of_the_last_states_may_be_put_together() -> None:
    model = onnx.load_from_string(recurrent_graph("GRU", 2, hidden=4))
    put_together("lengths")(model)
    assert match_text_graph(read_onnx_model(model.SerializeToString())).hidden == 4


def node_of(model: ModelProto, op: str, number: int = 0) -> Any:
    return [node for node in model.graph.node if node.op_type == op][number]


def attribute(op: str, name: str, value: Any, number: int = 0) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        node = node_of(model, op, number)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def constant(name: str, value: Any) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        found = next(t for t in model.graph.initializer if t.name == name)
        found.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


def rewired(op: str, at: int, name: str, number: int = 0) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        node_of(model, op, number).input[at] = name

    return change


def renamed(op: str, other: str, number: int = 0) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        node_of(model, op, number).op_type = other

    return change


def foreign(model: ModelProto) -> None:
    node_of(model, "GRU").domain = "com.microsoft"


def first_state(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 1, 13), np.float32), "start"))
    node_of(model, "GRU").input.append("start")


def swapped_outputs(model: ModelProto) -> None:
    layer = node_of(model, "GRU")
    layer.output[0], layer.output[1] = layer.output[1], layer.output[0]


PLAIN: list[tuple[Callable[[ModelProto], None], str]] = [
    (attribute("GRU", "linear_before_reset", 0), "linear_before_reset"),
    (attribute("GRU", "direction", "reverse"), "runs 'reverse'"),
    (attribute("GRU", "clip", 1.0), "clip"),
    (attribute("GRU", "layout", 1), "layout"),
    (attribute("GRU", "activations", ["Sigmoid", "Relu"] * 2), "activations"),
    (attribute("GRU", "of_another_version", 1), "of_another_version"),
    (rewired("GRU", 4, ""), "other lengths"),
    (first_state, "a first state"),
    (foreign, "the domain 'com.microsoft'"),
    (swapped_outputs, "another output of its GRU"),
    (constant("R", np.zeros((2, 39, 12), np.float32)), "weights of"),
    (constant("B", np.zeros((1, 78), np.float32)), "weights of"),
    (rewired("GRU", 1, "turned"), "is no constant of 3 axes"),
    (attribute("Transpose", "perm", [0, 1, 2]), "perm"),
    (attribute("Transpose", "perm", [1, 2, 0], 1), "perm"),
    (attribute("Gather", "axis", 1), "axis"),
    (rewired("Gather", 1, "lengths"), "looked up by the tokens alone"),
    (constant("flat", np.array([-1, 13], np.int64)), "made 13 values"),
    (constant("flat", np.array([2, 26], np.int64)), "side by side"),
    (put_together("tokens"), "side by side"),
    (attribute("Gemm", "alpha", 0.5), "alpha 0.5"),
    (attribute("Gemm", "transB", 0), "transB 0"),
    (constant("bias", np.zeros(1, np.float32)), r"adds \(1,\)"),
    (constant("project", np.zeros((5, 13), np.float32)), "takes 13 values"),
    (attribute("ReduceSum", "keepdims", 0), "no division by the Euclidean norm"),
    (constant("last_axis", np.array([0], np.int64)), "no division by the Euclidean norm"),
    (rewired("Mul", 1, "bias"), "no division by the Euclidean norm"),
    (renamed("Sqrt", "Exp"), "the operator Exp makes 'norm'; expected Sqrt"),
    (renamed("Reciprocal", "Neg"), "expected Reciprocal"),
    (renamed("Reshape", "Softmax"), "Softmax stands where its states are pooled"),
    (renamed("Gemm", "MatMul"), "MatMul stands where its states are pooled"),
]

OVER_TIME: list[tuple[Callable[[ModelProto], None], str]] = [
    (constant("least", np.float32(-0.5)), "something else than a step"),
    (constant("one", np.int64(2)), "the text's own steps"),
    (constant("zero", np.int64(1)), "the text's own steps"),
    (attribute("Shape", "start", 0), "not laid out|own steps"),
    (attribute("ReduceMax", "axes", [2]), "axes"),
    (attribute("ReduceMax", "keepdims", 1), "keepdims"),
    (renamed("ReduceMax", "ReduceMin"), "ReduceMin stands where"),
    (renamed("Less", "LessOrEqual"), "LessOrEqual makes"),
    (constant("axis1", np.array([0], np.int64)), "a new axis"),
    (attribute("Transpose", "perm", [2, 0, 3, 1], 1), "perm"),
    (rewired("Concat", 0, "t"), "not laid out"),
]


@pytest.mark.parametrize(("change", "said"), PLAIN)
def test_another_graph_is_refused_with_the_reason(change: Callable[[ModelProto], None], said: str) -> None:
    model = onnx.load_from_string(recurrent_graph(out=5))
    change(model)
    with pytest.raises(NoKernelError, match=said):
        match_text_graph(read_onnx_model(model.SerializeToString()))


@pytest.mark.parametrize(("change", "said"), OVER_TIME)
def test_another_maximum_is_refused_with_the_reason(change: Callable[[ModelProto], None], said: str) -> None:
    model = onnx.load_from_string(recurrent_graph("LSTM", over_time=True))
    change(model)
    with pytest.raises(NoKernelError, match=said):
        match_text_graph(read_onnx_model(model.SerializeToString()))


def test_encoders_without_a_recurrent_layer_are_refused() -> None:
    with pytest.raises(NoKernelError, match="Div stands where its states are pooled"):
        match_text_graph(read_onnx_model(text_graph()))


def test_graphs_that_read_something_else_are_refused() -> None:
    from tests.bundles import cosine_graph

    with pytest.raises(NoKernelError, match=r"leads from \['reference', 'text'\] to \['numerators'\]"):
        match_text_graph(read_onnx_model(cosine_graph()))


def test_a_node_without_its_inputs_is_refused() -> None:
    model = onnx.load_from_string(recurrent_graph())
    del node_of(model, "Gather").input[1:]
    with pytest.raises(NoKernelError, match="lacks an input"):
        match_text_graph(read_onnx_model(model.SerializeToString()))
