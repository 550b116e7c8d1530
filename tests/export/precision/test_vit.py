"""What int8 leaves alone in an encoder of one convolution."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cir_export.precision.int8 import to_int8
from cir_export.precision.layers import layers_of, name_nodes
from tests.bundles import GraphBuilder


@pytest.mark.parametrize(("convolutions", "quantised"), [(1, False), (2, True)])
def test_what_is_added_after_the_only_convolution_stays_float32(convolutions: int, quantised: bool) -> None:
    g, random = GraphBuilder(), np.random.default_rng(0)
    x = "image"
    for number in range(convolutions):
        g.constant(f"conv{number}.weight", random.normal(size=(4, 3 if number == 0 else 4, 1, 1)))
        x = g.add("Conv", [x, f"conv{number}.weight"], f"map{number}")
    g.constant("places", 1e-3 * random.normal(size=(1, 4, 2, 2)))
    g.add("Add", [x, "places"], "embedding")
    model = onnx.load_from_string(
        g.model({"image": ("f32", ["n", 3, 2, 2])}, {"embedding": ("f32", ["n", 4, 2, 2])})
    )
    name_nodes(model)
    batches = [random.normal(size=(2, 3, 2, 2)).astype(np.float32) for _ in range(2)]
    lowered = to_int8(model, layers_of(model), (), [{"image": batch} for batch in batches], "cpu")
    (added,) = (node for node in lowered.graph.node if node.op_type == "Add")
    producer = {name: node.op_type for node in lowered.graph.node for name in node.output}
    assert any(producer.get(name) == "DequantizeLinear" for name in added.input[1:]) is quantised
