"""Graphs that take too much are refused before they run; shapes are followed as ONNX Runtime makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.limits import OPERATORS, check_graph
from cir_infer.bundle.limits import check as checking
from cir_infer.bundle.limits.values import Step, Value
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import BundleError
from tests.bundles import artemis_graph, image_graph, text_graph
from tests.runtime.recurrent.graphs import recurrent_graph

F, L, U8, B = np.float32, np.int64, np.uint8, np.bool_


def ones(*shape: int, dtype: Any = F) -> np.ndarray:
    return np.ones(shape, dtype)


def ints(*values: int) -> np.ndarray:
    return np.array(values, L)


SCALE, ZERO = np.array(0.5, F), np.array(1, U8)
Case = tuple[str, list[np.ndarray | None], dict[str, Any]]


def named(words: str) -> list[str]:
    return words.split()


UNARY = named(
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish "
    "Identity LeakyRelu Log Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Tan Tanh ThresholdedRelu Hardmax LogSoftmax LpNormalization MeanVarianceNormalization Softmax "
    "IsInf IsNaN"
)
CASES: list[Case] = [
    *((op, [ones(2, 3, 4, 5)], {}) for op in UNARY),
    *((op, [ones(2, 3, 1), ones(3, 4)], {}) for op in named("Add Sub Mul Div Max Min Mean Sum")),
    *((op, [ones(3, 1, dtype=L), ones(4, dtype=L)], {}) for op in named("Mod Equal Greater Less")),
    *((op, [ones(3, 1), ones(4)], {}) for op in named("Pow GreaterOrEqual LessOrEqual PRelu")),
    *((op, [ones(3, 1, dtype=B), ones(4, dtype=B)], {}) for op in named("And Or Xor")),
    ("Not", [ones(3, dtype=B)], {}),
    ("BitShift", [ones(3, dtype=U8), ones(3, dtype=U8)], {"direction": "LEFT"}),
    ("Where", [ones(3, 1, dtype=B), ones(4), ones(1)], {}),
    ("Clip", [ones(3, 4), np.array(0, F), np.array(1, F)], {}),
    ("CumSum", [ones(3, 4), np.array(1, np.int32)], {}),
    ("LRN", [ones(1, 3, 4, 4)], {"size": 3}),
    ("Trilu", [ones(4, 5)], {}),
    ("ReverseSequence", [ones(3, 2, 4), ints(1, 2)], {}),
    ("ScatterElements", [ones(3, 4), ones(1, 4, dtype=L), ones(1, 4)], {}),
    ("ScatterND", [ones(3, 4), ints(0, 1).reshape(2, 1), ones(2, 4)], {}),
    ("BatchNormalization", [ones(2, 3, 4), *[ones(3)] * 4], {}),
    ("InstanceNormalization", [ones(2, 3, 4), ones(3), ones(3)], {}),
    ("LayerNormalization", [ones(2, 3, 4), ones(4), ones(4)], {}),
    *(
        (op, [ones(2, 3, 4)], {"axes": [0, -1], "keepdims": keep})
        for op in named(
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
            "ReduceSumSquare"
        )
        for keep in (0, 1)
    ),
    ("ReduceSum", [ones(2, 3, 4), ints(1)], {"keepdims": 0}),
    ("ReduceSum", [ones(2, 3, 4)], {}),
    ("ReduceSum", [ones(2, 3, 4)], {"noop_with_empty_axes": 1}),
    ("ArgMax", [ones(2, 3)], {"axis": 1, "keepdims": 0}),
    ("ArgMin", [ones(2, 3)], {}),
    ("Cast", [ones(2, 3)], {"to": TensorProto.INT64}),
    ("CastLike", [ones(2, 3), ones(1, dtype=L)], {}),
    ("Concat", [ones(2, 3), ones(2, 5)], {"axis": -1}),
    ("Constant", [], {"value": numpy_helper.from_array(ones(2, 3))}),
    ("Constant", [], {"value_ints": [1, 2, 3]}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("DepthToSpace", [ones(1, 8, 2, 3)], {"blocksize": 2}),
    ("SpaceToDepth", [ones(1, 2, 4, 6)], {"blocksize": 2}),
    ("QuantizeLinear", [ones(2, 3), SCALE, ZERO], {}),
    ("DequantizeLinear", [ones(2, 3, dtype=U8), SCALE, ZERO], {}),
    ("DynamicQuantizeLinear", [ones(2, 3)], {}),
    ("Dropout", [ones(2, 3)], {}),
    ("Expand", [ones(3, 1), ints(2, 1, 4)], {}),
    ("EyeLike", [ones(3, 4)], {}),
    ("Flatten", [ones(2, 3, 4)], {"axis": 2}),
    ("Flatten", [ones(2, 3, 4)], {"axis": -1}),
    ("Gather", [ones(5, 4), ints(0, 1).reshape(1, 2)], {"axis": 1}),
    ("GatherElements", [ones(5, 4), ones(2, 4, dtype=L)], {}),
    ("GatherND", [ones(2, 3, 4), ints(0, 1).reshape(1, 2)], {}),
    ("GatherND", [ones(2, 3, 4), ones(2, 1, dtype=L)], {"batch_dims": 1}),
    ("GridSample", [ones(1, 2, 3, 3), ones(1, 4, 5, 2)], {}),
    ("OneHot", [ints(0, 1), np.array(5, L), ones(2)], {"axis": 0}),
    ("Pad", [ones(2, 3), ints(1, 0, 2, -1)], {}),
    ("Range", [np.array(1, L), np.array(10, L), np.array(4, L)], {}),
    ("Reshape", [ones(2, 3, 4), ints(0, -1)], {}),
    ("Resize", [ones(1, 1, 4, 5), None, np.array([1, 1, 2, 0.5], F)], {"mode": "linear"}),
    ("Resize", [ones(1, 1, 4, 5), None, None, ints(1, 1, 7, 3)], {"mode": "cubic"}),
    ("Shape", [ones(2, 3, 4)], {"start": 1}),
    ("Size", [ones(2, 3, 4)], {}),
    ("Slice", [ones(5, 6), ints(4, 1), ints(-10, 5), ints(0, 1), ints(-1, 2)], {}),
    ("Squeeze", [ones(1, 3, 1), ints(0)], {}),
    ("Squeeze", [ones(1, 3, 1)], {}),
    ("Unsqueeze", [ones(3, 4), ints(0, -1)], {}),
    ("Tile", [ones(2, 3), ints(2, 1)], {}),
    ("TopK", [ones(3, 5), ints(2)], {}),
    ("Transpose", [ones(2, 3, 4)], {"perm": [2, 0, 1]}),
    ("Transpose", [ones(2, 3)], {}),
    ("MatMul", [ones(2, 1, 3, 4), ones(5, 4, 6)], {}),
    ("MatMul", [ones(4), ones(2, 4, 6)], {}),
    ("MatMul", [ones(3, 4), ones(4)], {}),
    ("MatMul", [ones(4), ones(4)], {}),
    ("MatMulInteger", [ones(3, 4, dtype=U8), ones(4, 2, dtype=U8)], {}),
    (
        "QLinearMatMul",
        [ones(3, 4, dtype=U8), SCALE, ZERO, ones(4, 2, dtype=U8), SCALE, ZERO, SCALE, ZERO],
        {},
    ),
    ("Gemm", [ones(4, 3), ones(5, 4), ones(5)], {"transA": 1, "transB": 1}),
    ("Einsum", [ones(2, 3), ones(3, 4)], {"equation": "ij,jk->ik"}),
    ("Conv", [ones(1, 4, 9, 8), ones(6, 2, 3, 3)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [ones(1, 1, 9, 8), ones(2, 1, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [ones(1, 1, 9), ones(2, 1, 3)], {"dilations": [2]}),
    ("ConvInteger", [ones(1, 1, 5, 5, dtype=U8), ones(1, 1, 3, 3, dtype=U8)], {}),
    (
        "QLinearConv",
        [ones(1, 1, 5, 5, dtype=U8), SCALE, ZERO, ones(2, 1, 3, 3, dtype=U8), SCALE, ZERO, SCALE, ZERO],
        {},
    ),
    ("ConvTranspose", [ones(1, 2, 4, 4), ones(2, 3, 3, 3)], {"strides": [2, 2]}),
    ("MaxPool", [ones(1, 2, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [ones(1, 2, 7, 7)], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}),
    ("LpPool", [ones(1, 2, 7, 7)], {"kernel_shape": [2, 2]}),
    *((op, [ones(1, 2, 7, 7)], {}) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    (
        "GRU",
        [ones(5, 2, 3), ones(2, 12, 3), ones(2, 12, 4)],
        {"hidden_size": 4, "direction": "bidirectional"},
    ),
    ("LSTM", [ones(5, 2, 3), ones(1, 16, 3), ones(1, 16, 4)], {"hidden_size": 4}),
    ("RNN", [ones(5, 2, 3), ones(1, 4, 3), ones(1, 4, 4)], {"hidden_size": 4}),
]
OUTPUTS = {"TopK": 2, "DynamicQuantizeLinear": 3, "Dropout": 2, "GRU": 2, "RNN": 2, "LSTM": 3}
ELSEWHERE = {
    *named(
        "Split BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Gelu Mish Swish Scatter Upsample GroupNormalization"
    ),
    "RMSNormalization",
}
"""Of another opset than 17, or tested by themselves."""


def one_node(op: str, inputs: list[np.ndarray | None], attributes: dict[str, Any], outputs: int) -> bytes:
    names = ["" if value is None else f"x{place}" for place, value in enumerate(inputs)]
    made = [f"y{place}" for place in range(outputs)]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, inputs, strict=True)
        if value is not None
    ]
    graph = helper.make_graph(
        [helper.make_node(op, names, made, **attributes)],
        "g",
        given,
        [onnx.ValueInfoProto(name=name) for name in made],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_shapes_are_those_of_onnx_runtime(
    op: str, inputs: list[np.ndarray | None], attributes: dict[str, Any]
) -> None:
    model = one_node(op, inputs, attributes, OUTPUTS.get(op, 1))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # an operator that this build has no kernel for on these types
        pytest.skip(str(error)[:100])
    feeds = {f"x{place}": value for place, value in enumerate(inputs) if value is not None}
    expected = session.run(None, feeds)
    values = [None if value is None else Value.of(value) for value in inputs]
    found = OPERATORS[op](Step(read_onnx_model(model).nodes[0], values, 17))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.bytes == theirs.nbytes
        if ours.data is not None:
            np.testing.assert_allclose(ours.data, theirs)


def test_every_operator_is_tested() -> None:
    assert set(OPERATORS) == {op for op, _, _ in CASES} | ELSEWHERE


def test_split() -> None:
    for inputs, expected in (([ones(7, 2)], [3, 3, 1]), ([ones(7, 2), ints(1, 2, 4)], [1, 2, 4])):
        node = read_onnx_model(one_node("Split", inputs, {"axis": 0}, 3)).nodes[0]
        values: list[Value | None] = [Value.of(value) for value in inputs]
        assert [value.shape for value in OPERATORS["Split"](Step(node, values, 17))] == [
            (n, 2) for n in expected
        ]


@pytest.mark.parametrize("model", [artemis_graph(), recurrent_graph(over_time=True, out=3)])
def test_graphs_of_bundles_pass(model: bytes) -> None:
    check_graph(Model(model), {}, 64)


def test_graphs_that_read_inputs_pass() -> None:
    check_graph(Model(image_graph()), {"image": (None, 8, 8, 3)})
    check_graph(Model(text_graph()), {}, 512)


class Hostile:
    """A graph of one input (n, 8) that becomes its output through some nodes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def model(self, last: str, functions: Any = ()) -> bytes:
        info = helper.make_tensor_value_info
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "g",
            [info("x", TensorProto.FLOAT, ["n", 8])],
            [onnx.ValueInfoProto(name="y")],
            self.constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], functions=functions
        ).SerializeToString()


def body() -> Any:
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("c", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT, None),
        ],
        [info("d", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, None)],
    )


def graphs() -> dict[str, tuple[bytes, str]]:
    """Hostile graphs, and what is said of them."""
    made: dict[str, tuple[bytes, str]] = {}

    def put(what: str, said: str, build: Any) -> None:
        hostile = Hostile()
        made[what] = (hostile.model(build(hostile)), said)

    put("a loop", "Loop", lambda g: g.add("Loop", g.constant(np.array(2**62)), "", "x", body=body()))
    put("a scan", "Scan", lambda g: g.add("Scan", "x", body=body(), num_scan_inputs=1))
    put("a branch", "If", lambda g: g.add("If", g.constant(True), then_branch=body(), else_branch=body()))
    put("chance", "RandomNormalLike", lambda g: g.add("RandomNormalLike", "x"))
    put("another domain", "com.microsoft", lambda g: g.add("Gelu", "x", domain="com.microsoft"))
    put("a sequence", "SequenceConstruct", lambda g: g.add("SequenceConstruct", "x"))
    put("a size by value", "NonZero", lambda g: g.add("NonZero", "x"))
    large = np.array([1_000_000_000])
    put("a large constant", "memory", lambda g: g.add("ConstantOfShape", g.constant(large)))
    put(
        "a constant beyond all",
        "larger than any",
        lambda g: g.add("ConstantOfShape", g.constant(np.array([2**40, 2**40]))),
    )
    put("a large copy", "memory", lambda g: g.add("Expand", "x", g.constant(np.array([100_000, 1000, 8]))))
    put("many copies", "memory", lambda g: g.add("Tile", "x", g.constant(np.array([1, 100_000_000]))))
    share = "memory for a batch"
    put("a large share each", share, lambda g: g.add("Tile", "x", g.constant(np.array([1, 5_500_000]))))
    put("a large border", "memory", lambda g: g.add("Pad", "x", g.constant(np.array([0, 0, 0, 10**9]))))
    put(
        "a long range",
        "memory",
        lambda g: g.add("Range", g.constant(0), g.constant(10**10), g.constant(1)),
    )
    put(
        "one hot",
        "memory",
        lambda g: g.add(
            "OneHot", g.add("Cast", "x", to=TensorProto.INT64), g.constant(10**9), g.constant(np.zeros(2, F))
        ),
    )
    put(
        "a large picture",
        "memory",
        lambda g: g.add(
            "Resize",
            g.add("Reshape", "x", g.constant(np.array([-1, 1, 2, 4]))),
            "",
            g.constant(np.array([1, 1, 10_000, 10_000], F)),
        ),
    )

    def of_values(g: Hostile) -> str:
        total = g.add("ReduceSum", "x", g.constant(ints(0)), keepdims=0)
        return g.add("Expand", "x", g.add("Cast", total, to=TensorProto.INT64))

    put("a size of what is given", "makes a size", of_values)

    def doubled(g: Hostile) -> str:
        last = "x"
        for _ in range(40):
            last = g.add("Concat", last, last, axis=1)
        return last

    def squared(g: Hostile) -> str:
        last = "x"
        for _ in range(4):
            flat = g.add("Reshape", last, g.constant(np.array([-1, 1])))
            last = g.add("MatMul", flat, g.add("Transpose", flat))
        return last

    def kept(g: Hostile) -> str:
        parts = [g.add("ConstantOfShape", g.constant(np.array([5_500_000]))) for _ in range(30)]
        return g.add("Sum", *parts)

    def long(g: Hostile) -> str:
        last = g.add(
            "Expand", g.add("Unsqueeze", "x", g.constant(ints(1))), g.constant(np.array([1, 1000, 8]))
        )
        for _ in range(5000):
            last = g.add("Tanh", g.add("Add", last, last))
        wide = g.add("Tile", last, g.constant(np.array([1, 400, 1])))
        for _ in range(2000):
            wide = g.add("Tanh", wide)
        return wide

    def outer(g: Hostile) -> str:
        wide = g.add("Tile", "x", g.constant(np.array([1, 100])))
        column = g.add("Reshape", wide, g.constant(np.array([-1, 1])))
        many = g.add("Expand", column, g.constant(np.array([1, 64])))
        return g.add("MatMul", many, g.add("Transpose", many))

    def empty(g: Hostile, op: str, *rest: Any, **attributes: Any) -> str:
        none = g.add("Unsqueeze", g.add("Tile", "x", g.constant(ints(1, 0))), g.constant(ints(0, 1)))
        return g.add(op, *((none, none) if op == "Einsum" else (none,)), *map(g.constant, rest), **attributes)

    def divided(g: Hostile, *by: int) -> str:
        least = g.add("Mul", g.add("Cast", "x", to=7), g.constant(np.array(-(2**63))))
        return g.add("Div", least, g.constant(np.array(by)))

    put("nothing in Einsum", "no elements", lambda g: empty(g, "Einsum", equation="abij,abkj->ik"))
    put("nothing normalised", "no elements", lambda g: empty(g, "InstanceNormalization", ones(1), ones(1)))
    put("nothing pooled", "no elements", lambda g: empty(g, "GlobalAveragePool"))
    put("the least number by -1", "by -1", lambda g: divided(g, -1))
    put("whole numbers by zero", "may be zero", lambda g: divided(g, 3, 0))
    put(
        "by what nobody knows", "may be zero", lambda g: g.add("Div", divided(g, 2), g.add("Cast", "x", to=7))
    )
    put("doubling", "memory|larger than any", doubled)
    put("products of products", "memory|larger than any", squared)
    put("many constants", "memory", kept)
    put("hours", "work", long)
    put("a batch by itself", "batch", outer)
    put("what nobody makes", "nothing before it", lambda g: g.add("Relu", "z"))
    put("shapes that do not fit", "do not fit", lambda g: g.add("Add", "x", g.constant(np.zeros(7, F))))
    function = helper.make_function(
        "own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    g = Hostile()
    made["a function"] = (g.model(g.add("f", "x", domain="own"), [function]), "own")
    g = Hostile()
    g.nodes.append(helper.make_node("Relu", ["x"], ["a"]))
    g.nodes.append(helper.make_node("Tanh", ["x"], ["a"]))
    made["a name twice"] = (g.model("a"), "two of its nodes")
    return made


GRAPHS = graphs()


@pytest.mark.parametrize("what", GRAPHS)
def test_hostile_graphs_are_refused(what: str) -> None:
    model, said = GRAPHS[what]
    with pytest.raises(BundleError, match=said) as caught:
        check_graph(Model(model), {})
    assert len(str(caught.value)) < 600


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("op", ["Cast", "Mul", "Div", "Sqrt"])
def test_what_no_number_holds_is_told_by_no_library(op: str) -> None:
    """Whoever opened such a bundle, as CLIP's in float16 for its mask, had a warning of NumPy."""
    g = Hostile()
    inputs = {"Cast": [-3e38], "Mul": [3e38, 3e38], "Div": [1.0, 0.0], "Sqrt": [-1.0]}[op]
    to = {"to": TensorProto.FLOAT16} if op == "Cast" else {}
    made = g.add(op, *(g.constant(np.array([value], F)) for value in inputs), **to)
    check_graph(Model(g.model(g.add("Mul", "x", g.add("Cast", made, to=TensorProto.FLOAT)))), {})


def test_axes_that_nobody_knows_are_refused() -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["n", "m"])],
        [info("y", TensorProto.FLOAT, ["n", "m"])],
    )
    model = helper.make_model(graph).SerializeToString()
    with pytest.raises(BundleError, match="axis 1 open"):
        check_graph(Model(model), {})
    check_graph(Model(model), {"x": (None, 7)})
    check_graph(Model(model), {}, 7)


def test_a_graph_may_have_so_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_NODES", 3)
    with pytest.raises(BundleError, match="nodes; expected at most 3"):
        check_graph(Model(artemis_graph()), {})


def test_lists_of_numbers_are_stored_raw() -> None:
    tensor = helper.make_tensor("c", TensorProto.INT64, [2_000_000], np.zeros(2_000_000, L), raw=False)
    graph = helper.make_graph([], "g", [], [], [tensor])
    with pytest.raises(BundleError, match="not stored raw"):
        check_graph(Model(helper.make_model(graph).SerializeToString()), {})
