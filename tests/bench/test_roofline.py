"""Counting work against worked answers, and what follows from it for other devices."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cir_bench.graph_cost import graph_cost
from cir_bench.roofline import matrix_rate, read_bandwidth
from cir_eval.predictions import DEVICES, encoder_floor, predict_scan, prediction_table
from tests.bundles import DIM, FEATURES, HIDDEN, SIDE, artemis_graph, image_graph, text_graph


def model(nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def test_a_convolution_is_output_positions_times_kernel():
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2)
    content = model([node], {"x": ["n", 4, 8, 8]}, {"y": ["n", 6, 4, 4]}, {"w": (6, 2, 3, 3)})
    cost = graph_cost(content, {"n": 5})
    assert cost.macs == 5 * 6 * 4 * 4 * 2 * 3 * 3
    assert cost.parameters == 6 * 2 * 3 * 3


def test_a_recurrent_layer_is_steps_times_its_matrices():
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=3)
    content = model([node], {"x": ["t", "n", 5]}, {"y": [1, "n", 3]}, {"w": (1, 12, 5), "r": (1, 12, 3)})
    cost = graph_cost(content, {"n": 2, "t": 7})
    assert cost.macs == cost.recurrent_macs == 7 * 2 * (12 * 5 + 12 * 3)


def test_the_graphs_of_a_bundle():
    assert graph_cost(image_graph(), {"n": 3}).macs == 3 * SIDE * SIDE * 3 * DIM
    assert graph_cost(image_graph(features=True), {"n": 1}).macs == FEATURES * DIM
    assert graph_cost(artemis_graph(), {"n": 1}).macs == 3 * HIDDEN * DIM
    assert graph_cost(text_graph(), {"n": 1, "t": 4}).macs == 0


def test_predictions_are_arithmetic_on_published_figures():
    t4 = DEVICES[0]
    assert predict_scan(t4, 1024e6, 1.0) == pytest.approx(3.2)
    assert predict_scan(t4, 1024e6, 0.5) == pytest.approx(6.4)
    assert encoder_floor(t4, 4.05e9, "float32") == pytest.approx(1.0)
    table = prediction_table(scan_bytes=1e9, scan_fraction=0.9, encoder_macs=4e9)
    assert {entry["kind"] for entry in table} == {"predicted"}
    assert all(entry["encoder_float16_floor_ms"] < entry["encoder_float32_floor_ms"] for entry in table)


def test_this_machine_reads_and_multiplies_at_a_possible_rate():
    assert 1e8 < read_bandwidth(1, seconds=0.1) < 1e13
    assert 1e8 < matrix_rate("cpu", 1, seconds=0.1) < 1e15
