"""The runtime's own reader of ONNX models against the `onnx` package, and on hostile bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.onnx_model import check_self_contained, read_onnx_model
from cir_infer.errors import BundleError
from tests.bundles import artemis_graph, image_graph, text_graph
from tests.runtime.recurrent.graphs import recurrent_graph


@pytest.mark.parametrize(
    "model", [artemis_graph(), image_graph(), text_graph(), recurrent_graph(over_time=True, out=3)]
)
def test_models_are_read_as_onnx_reads_them(model: bytes) -> None:
    graph, found = onnx.load_from_string(model).graph, read_onnx_model(model)
    assert found.inputs == tuple(value.name for value in graph.input)
    assert found.outputs == tuple(value.name for value in graph.output)
    for ours, node in zip(found.nodes, graph.node, strict=True):
        assert (ours.op, ours.domain) == (node.op_type, node.domain)
        assert (ours.inputs, ours.outputs) == (tuple(node.input), tuple(node.output))
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            assert ours.attributes[attribute.name] == (value.decode() if isinstance(value, bytes) else value)
    assert set(found.constants) == {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        expected = numpy_helper.to_array(tensor)
        assert found.constants[tensor.name].dtype == expected.dtype
        np.testing.assert_array_equal(found.constants[tensor.name], expected)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.25, 3e38]),
        (TensorProto.FLOAT16, [1.5, -2.25, 65504.0]),
        (TensorProto.INT32, [1, -2, 2**31 - 1]),
        (TensorProto.INT64, [1, -2, -(2**63)]),
        (TensorProto.DOUBLE, [1.5, -2.25, 1e300]),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_constants_in_either_form(kind: int, values: list[float], raw: bool) -> None:
    given = np.array(values, helper.tensor_dtype_to_np_dtype(kind))
    content = given.tobytes() if raw else values
    tensor = helper.make_tensor("c", kind, [3, 1], content, raw=raw)
    node = helper.make_node("Constant", [], ["d"], value=helper.make_tensor("", kind, [3], content, raw=raw))
    graph = helper.make_graph([node], "g", [], [], [tensor])
    found = read_onnx_model(helper.make_model(graph).SerializeToString()).constants
    np.testing.assert_array_equal(found["c"], given.reshape(3, 1))
    np.testing.assert_array_equal(found["d"], given)


def test_attributes_of_every_kind() -> None:
    given = {"f": 0.5, "i": -3, "s": "word", "fs": [0.5, -1.0], "is": [1, -2, 2**40], "ss": ["a", "b"]}
    node = helper.make_node("Anything", [], ["y"], domain="d", **given)
    graph = helper.make_graph([node], "g", [], [])
    assert read_onnx_model(helper.make_model(graph).SerializeToString()).nodes[0].attributes == given


def test_content_in_other_files_is_not_read() -> None:
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph([], "g", [], [], [tensor])
    assert read_onnx_model(helper.make_model(graph).SerializeToString()).constants == {}


@pytest.mark.parametrize("content", [b"", b"no model", b"\x3a", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="no ONNX model that can be read"):
        read_onnx_model(content)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.data())
def test_damage_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(recurrent_graph(hidden=2, width=1, words=2, over_time=True))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[at : at + data.draw(st.integers(1, 40))]
    with contextlib.suppress(BundleError):
        read_onnx_model(bytes(content))


def external(name: str = "w") -> onnx.TensorProto:
    """A tensor whose values lie in a file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def inner(*nodes: onnx.NodeProto, **more: list[onnx.TensorProto]) -> onnx.GraphProto:
    """A graph without inputs."""
    return helper.make_graph(list(nodes), "inner", [], [], **more)


def sparse() -> onnx.SparseTensorProto:
    """A sparse tensor whose indices lie in a file."""
    return helper.make_sparse_tensor(numpy_helper.from_array(np.zeros(1, np.float32), "v"), external(), [4])


def hiding_places() -> dict[str, onnx.ModelProto]:
    """Every place of a model where a tensor can stand."""
    places = {
        "initializer": helper.make_model(inner(initializer=[external()])),
        "sparse initializer": helper.make_model(inner()),
        "constant": helper.make_model(inner(helper.make_node("Constant", [], ["c"], value=external()))),
        "list": helper.make_model(inner(helper.make_node("Odd", [], ["c"], values=[external()]))),
        "branch": helper.make_model(
            inner(
                helper.make_node(
                    "If", ["x"], ["y"], then_branch=inner(initializer=[external()]), else_branch=inner()
                )
            )
        ),
        "branches": helper.make_model(
            inner(helper.make_node("Odd", [], [], graphs=[inner(), inner(initializer=[external()])]))
        ),
        "sparse constant": helper.make_model(
            inner(helper.make_node("Constant", [], ["c"], sparse_value=sparse()))
        ),
        "function": helper.make_model(inner()),
        "training": helper.make_model(inner()),
        "compiled": helper.make_model(inner(helper.make_node("EPContext", [], [], domain="com.microsoft"))),
    }
    places["sparse initializer"].graph.sparse_initializer.append(sparse())
    places["function"].functions.append(
        helper.make_function(
            "own", "f", [], [], [helper.make_node("Constant", [], ["c"], value=external())], []
        )
    )
    places["training"].training_info.add().algorithm.CopyFrom(inner(initializer=[external()]))
    return places


@pytest.mark.parametrize("place", list(hiding_places()))
def test_a_model_that_names_a_file_is_refused_wherever_it_does(place: str) -> None:
    with pytest.raises(BundleError, match="another file"):
        check_self_contained(hiding_places()[place].SerializeToString())


@pytest.mark.parametrize(
    "model", [artemis_graph(), image_graph(), text_graph(), recurrent_graph(over_time=True, out=3)]
)
def test_a_model_that_names_no_file_passes(model: bytes) -> None:
    check_self_contained(model)


def test_graphs_in_graphs_take_no_stack() -> None:
    data = b""
    for _ in range(3000):
        for number in (6, 5, 1):  # attribute > graph, node > attribute, graph > node
            data = bytes([number << 3 | 2]) + varint(len(data)) + data
    check_self_contained(bytes([7 << 3 | 2]) + varint(len(data)) + data)


def varint(value: int) -> bytes:
    """A number as protocol buffers write it."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
