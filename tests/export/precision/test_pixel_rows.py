"""An image is normalised along rows of pixels where its bytes are multiplied, with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from cir_export.precision.int8 import to_int8
from cir_export.precision.layers import layers_of, name_nodes
from cir_export.precision.pixel_rows import in_rows_of_pixels
from tests.bundles import GraphBuilder

HEIGHT, WIDTH = 4, 6
IMAGES = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
CHANNELS = [0.485, 0.456, 0.406]


def graph(
    steps: list[tuple[str, Any, bool]],
    turned_after: int,
    perm: tuple[int, ...] | None = (0, 3, 1, 2),
    size: tuple[Any, ...] = (HEIGHT, WIDTH),
    given: tuple[str, ...] = (),
) -> ModelProto:
    """An image graph: a cast, steps by a constant (first where `True`), a transposition, a convolution."""
    g = GraphBuilder()
    turned = {} if perm is None else {"perm": perm}
    here = g.add("Cast", ["image"], "float", to=TensorProto.FLOAT)
    for number, (kind, value, first) in enumerate(steps):
        if number == turned_after:
            here = g.add("Transpose", [here], "planes", **turned)
        constant = g.constant(f"constant_{number}", value)
        here = g.add(kind, [constant, here] if first else [here, constant], f"step_{number}")
    if turned_after == len(steps):
        here = g.add("Transpose", [here], "planes", **turned)
    g.constant("conv.weight", np.random.default_rng(1).normal(size=(5, 3, 3, 3)))
    g.add("Conv", [here, "conv.weight"], "convolved")
    g.add("ReduceMean", ["convolved"], "embedding", axes=[2, 3], keepdims=0)
    outputs: dict[str, Any] = {"embedding": ("f32", ["n", 5])}
    outputs.update({name: ("f32", ["n", None, None, None]) for name in given})
    model = onnx.load_from_string(g.model({"image": ("u8", ["n", *size, 3])}, outputs))
    name_nodes(model)
    return model


def run(model: ModelProto, optimise: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: np.ndarray = session.run(["embedding"], {"image": IMAGES})[0]
    return found


def rewritten(model: ModelProto) -> ModelProto:
    copy = ModelProto.FromString(model.SerializeToString())
    in_rows_of_pixels(copy)
    onnx.checker.check_model(copy, full_check=True)
    return copy


PLANES = np.array(CHANNELS, np.float32).reshape(3, 1, 1)
NORMALISED: list[tuple[str, Any, bool]] = [
    ("Div", 255.0, False),
    ("Sub", PLANES[None], False),
    ("Div", PLANES[None] / 2, False),
]

values = st.floats(0.125, 8, width=32)
by_channel = st.lists(values, min_size=3, max_size=3)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Add", "Div", "Mul", "Sub"]), st.one_of(values, by_channel), st.booleans()
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 4),
    st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_every_order_of_steps_gives_the_same_bits(
    drawn: list[tuple[str, Any, bool]], turned_after: int, axes: int
) -> None:
    turned_after = min(turned_after, len(drawn))
    steps = []
    for number, (kind, value, first) in enumerate(drawn):
        shaped = np.array(value, np.float32)
        if shaped.ndim:
            shaped = shaped.reshape((3, 1, 1) if number >= turned_after else (3,))
        shaped = shaped.reshape((1,) * max(0, axes - shaped.ndim) + shaped.shape)
        steps.append((kind, shaped, first))
    model = graph(steps, turned_after)
    changed = rewritten(model)
    assert np.array_equal(run(model, False), run(changed, False), equal_nan=True)
    by_row = any(isinstance(value, list) for _, value, _ in drawn)
    assert any(node.op_type == "Reshape" for node in changed.graph.node) == by_row


def test_int8_for_the_cpu_normalises_rows_and_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(NORMALISED, 0)

    def lowered(form: Any) -> ModelProto:
        return to_int8(model, layers_of(model), (), [{"image": IMAGES}], form)

    changed, signed = lowered("cpu"), lowered("tensorrt")
    monkeypatch.setattr("cir_export.precision.int8.in_rows_of_pixels", lambda model: None)
    before = lowered("cpu")
    kinds = [node.op_type for node in changed.graph.node if node.op_type in {"Reshape", "Div", "Transpose"}]
    assert kinds == ["Reshape", "Div", "Div", "Reshape", "Transpose"]
    assert "Reshape" not in [node.op_type for node in (*before.graph.node, *signed.graph.node)]
    for optimise in (False, True):
        assert np.array_equal(run(before, optimise), run(changed, optimise))
    # Rows of pixels read constants of their own; those of planes are read by nobody then.
    assert not {"constant_1", "constant_2"} & {tensor.name for tensor in changed.graph.initializer}


def test_a_value_within_that_others_read_is_still_made() -> None:
    model = graph(NORMALISED, 0, given=("step_1",))
    changed = rewritten(model)
    kinds = {node.output[0]: node.op_type for node in changed.graph.node}
    assert kinds["step_1"] == "Transpose"
    assert kinds["step_2"] == "Div"
    assert np.array_equal(run(model, False), run(changed, False))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(graph(NORMALISED, 0, size=("h", "w")), id="of any size"),
        pytest.param(graph(NORMALISED, 0, perm=(0, 3, 2, 1)), id="turned in another way"),
        pytest.param(graph(NORMALISED[:1], 0), id="no constant a channel"),
        pytest.param(graph([("Sub", np.ones((3, 1, WIDTH)), False)], 0), id="a constant a column"),
    ],
)
def test_another_way_stays_as_it_is(model: ModelProto) -> None:
    assert rewritten(model) == model


def test_a_transposition_that_names_no_axes_turns_all_of_them_round() -> None:
    model = graph(NORMALISED, 0, perm=None)
    copy = ModelProto.FromString(model.SerializeToString())
    in_rows_of_pixels(copy)
    assert copy == model
