"""The runtime's own reader of ONNX models against the `onnx` package, and on hostile bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle import onnx_form
from cir_infer.bundle.onnx_form import check_self_contained
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.bundle.wire import field
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


@settings(max_examples=300)
@given(st.data())
def test_damage_is_refused_or_read_as_onnx_reads_it(data: st.DataObject) -> None:
    content = bytearray(recurrent_graph(hidden=2, width=1, words=2, over_time=True))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[at : at + data.draw(st.integers(1, 40))]
    with contextlib.suppress(BundleError, DecodeError):
        check_self_contained(bytes(content))
        found = read_onnx_model(bytes(content))
        graph = onnx.load_from_string(bytes(content)).graph
        assert found.inputs == tuple(value.name for value in graph.input)
        nodes = [(node.op, node.domain, node.inputs, node.outputs) for node in found.nodes]
        assert nodes == [(n.op_type, n.domain, tuple(n.input), tuple(n.output)) for n in graph.node]
        for tensor in graph.initializer:
            if tensor.name in found.constants:
                assert found.constants[tensor.name].shape == tuple(tensor.dims)


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


# ---- models that readers could understand in two ways


def varied(change: Callable[[dict[str, list[bytes]]], None]) -> bytes:
    """A model of one product, whose messages a test writes in its own way."""
    info = helper.make_tensor_value_info
    shape = numpy_helper.from_array(np.array([1], np.int64))
    parts = {
        "model": [field(1, 8), field(8, helper.make_opsetid("", 17).SerializeToString())],
        "graph": [
            field(12, info("y", TensorProto.FLOAT, None).SerializeToString()),
            field(5, numpy_helper.from_array(np.ones((2, 2), np.float32), "w").SerializeToString()),
        ],
        "node": [field(1, b"x"), field(1, b"w"), field(2, b"y"), field(4, b"MatMul")],
        "attribute": [field(1, b"value"), field(20, 4), field(5, shape.SerializeToString())],
        "type": [field(1, 1), field(2, field(1, field(2, b"n")) + field(1, field(1, 2)))],
        "length": [],
    }
    change(parts)
    joined = {name: b"".join(fields) for name, fields in parts.items()}
    constant = field(2, b"c") + field(4, b"Constant") + field(5, joined["attribute"])
    lengths = field(2, field(1, joined["length"])) if joined["length"] else b""
    given = field(1, b"x") + field(2, field(1, joined["type"] + lengths))
    graph = field(1, constant) + field(1, joined["node"]) + field(11, given) + joined["graph"]
    return joined["model"] + field(7, graph)


def wide(number: int, content: bytes) -> bytes:
    """A field whose number has bits beyond the 32 that are read by some."""
    key = (1 << 32) | number << 3 | 2
    return (
        bytes((key >> shift & 0x7F) | 0x80 for shift in (0, 7, 14, 21))
        + bytes([key >> 28])
        + (varint(len(content)) + content)
    )


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_two_versions_of_the_standard_operators_are_refused(domain: str) -> None:
    versions = [helper.make_opsetid(domain, 17), helper.make_opsetid("", 11)]
    with pytest.raises(BundleError, match="two versions"):
        read_onnx_model(helper.make_model(inner(), opset_imports=versions).SerializeToString())


def test_attributes_and_constants_of_one_name_are_refused() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    node.attribute.append(helper.make_attribute("axis", 0))
    with pytest.raises(BundleError, match="two attributes"):
        read_onnx_model(helper.make_model(inner(node)).SerializeToString())
    texts = helper.make_tensor("c", TensorProto.STRING, [1], [b"t"])  # of which no value is read
    with pytest.raises(BundleError, match="two constants"):
        read_onnx_model(helper.make_model(inner(initializer=[texts, texts])).SerializeToString())


def sparse_inside() -> bytes:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    return helper.make_sparse_tensor(
        values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [1 << 40]
    ).SerializeToString()


AMBIGUOUS: dict[str, tuple[Callable[[dict[str, list[bytes]]], None], str]] = {
    "a constant under a wide number": (
        lambda parts: parts["graph"].append(wide(5, external("h").SerializeToString())),
        "field of number",
    ),
    "an operator under a wide number": (
        lambda parts: parts["graph"].append(wide(1, field(1, b"x") + field(4, b"NonZero"))),
        "field of number",
    ),
    "a number of no field": (lambda parts: parts["node"].append(field(0, b"")), "field of number 0"),
    "a number beyond 64 bits": (lambda parts: parts["model"].append(field(5, 1 << 64)), "64 bits"),
    "a value in two pieces": (
        lambda parts: parts["attribute"].append(
            field(5, numpy_helper.from_array(np.array([9], np.int64)).SerializeToString())
        ),
        "attribute comes twice",
    ),
    "two kinds of an attribute": (lambda parts: parts["attribute"].append(field(20, 2)), "comes twice"),
    "a kind that is cut": (
        lambda parts: parts["attribute"].__setitem__(1, field(20, (1 << 32) + 4)),
        "attribute is 4294967300",
    ),
    "two names of an operator": (lambda parts: parts["node"].append(field(4, b"NonZero")), "comes twice"),
    "a name that is a number": (
        lambda parts: parts["node"].__setitem__(3, field(4, 1 << 40)),  # as many zeros, if it is believed
        "node is of kind 0",
    ),
    "a text for a number": (lambda parts: parts["attribute"].__setitem__(1, field(20, b"4")), "of kind 2"),
    "a shape in two pieces": (lambda parts: parts["length"].append(field(1, 7)), "tensor type comes twice"),
    "an axis both open and not": (
        lambda parts: parts["type"].__setitem__(1, field(2, field(1, field(1, 2) + field(2, b"n")))),
        "two things at once",
    ),
    "a function": (
        lambda parts: parts["model"].append(field(25, field(1, b"MatMul") + field(7, field(4, b"Neg")))),
        "functions of its own",
    ),
    "training": (lambda parts: parts["model"].append(field(20, field(1, b""))), "for training"),
    "a sparse constant": (lambda parts: parts["graph"].append(field(15, sparse_inside())), "sparse"),
}


@pytest.mark.parametrize(("change", "said"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_readers_could_understand_in_two_ways_is_refused(
    change: Callable[[dict[str, list[bytes]]], None], said: str
) -> None:
    check_self_contained(varied(lambda parts: None))
    with pytest.raises(BundleError, match=said) as caught:
        check_self_contained(varied(change))
    assert len(str(caught.value)) < 300


def test_every_field_of_onnx_is_known_in_its_form() -> None:
    """The table of forms against the `onnx` package's own description of the messages."""
    names = {
        "ModelProto": "model", "OperatorSetIdProto": "opset", "GraphProto": "graph",
        "TrainingInfoProto": "training", "FunctionProto": "function", "NodeProto": "node",
        "AttributeProto": "attribute", "TensorProto": "tensor", "SparseTensorProto": "sparse",
        "StringStringEntryProto": "entry", "ValueInfoProto": "value", "TypeProto": "type",
        "TensorShapeProto": "shape",
    }  # fmt: skip
    described = {ours: getattr(onnx, name).DESCRIPTOR for name, ours in names.items()}
    described["tensor type"] = onnx.TypeProto.Tensor.DESCRIPTOR
    described["length"] = onnx.TensorShapeProto.Dimension.DESCRIPTOR
    kinds = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 9: 2, 11: 2, 12: 2, 13: 0, 14: 0}
    for message, descriptor in described.items():
        for said in descriptor.fields:
            known = onnx_form._FORMS[message][said.number]
            assert known.kinds[0] == kinds[said.type], (message, said.name)
            if (message, said.number) not in {("graph", 2), ("graph", 10)}:
                repeats = said.is_repeated if hasattr(said, "is_repeated") else said.label == 3
                assert known.repeats == repeats, (message, said.name)
