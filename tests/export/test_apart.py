"""A query in one piece, taken apart: its graphs together give what it gives, to the bit."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser, shape_inference

from cir_export.graphs.apart import apart

_SHAPES = {"w": (48, 4), "v": (48, 4), "u": (48, 4), "z": (4, 4), "words": (200, 4)}
_RANDOM = np.random.default_rng(3)
_WEIGHTS = {name: _RANDOM.normal(size=shape).astype(np.float32) for name, shape in _SHAPES.items()}
_CONSTANTS = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([[2]], np.int32),
    "four": np.array([4]),
    "twelve": np.array([1, 12]),
    "high": np.float32(0.5),
    "least": np.float32(-np.inf),
    "none": np.float32(0),
    "nothing": np.zeros((1, 4), np.float32),
}
_SEEN = "bytes = Cast<to=1>(image)  flat = Flatten<axis=1>(bytes)"
_ROW = f"{_SEEN}  row = MatMul(flat, w)"
_OTHER = f"{_SEEN}  a = MatMul(flat, v)"
_READ = "each = Gather(words, tokens)  said = ReduceMean<axes=[1], keepdims=0>(each)"
_LONG = "long = Unsqueeze(lengths, one)  mask = Less(long, two)"
_IMAGES = {
    "pixels": np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8),
    "features": np.random.default_rng(1).normal(size=(3, 48)).astype(np.float32),
}
_TEXT = {"tokens": np.array([[1, 2], [8, 3], [4, 4]], np.int32), "lengths": np.array([2, 1, 2], np.int32)}


def graph_of(body: str, inputs: str, outputs: str) -> ModelProto:
    """A graph of what ONNX's own text says, with the constants that it reads and the shapes inside."""
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    read = {name for node in model.graph.node for name in node.input}
    every = {**_WEIGHTS, **_CONSTANTS}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in every.items() if name in read
    )
    return shape_inference.infer_shapes(model, data_prop=True)


def query_of(body: str, images: str = "uint8[n,4,4,3] image", weights: str = "") -> ModelProto:
    """A query that ends with `end`, (n, 4)."""
    body = f"{body}  numerators = Unsqueeze(end, one)"
    outputs = "float[n,1,4] numerators" + (", float[n,1,4] weights" if weights else "")
    return graph_of(f"{body}  {weights}", f"{images}, int32[n,t] tokens, int32[n] lengths", outputs)


def ran(model: ModelProto, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    feeds = {value.name: given[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def held_against_the_whole(
    query: ModelProto, image: ModelProto, pictures: np.ndarray
) -> dict[str, ModelProto]:
    given = {"image": pictures, **_TEXT}
    expected = ran(query, given)
    parts = apart(query, image)
    assert parts is not None
    made = (
        ran(parts["reference"], given)
        if "reference" in parts
        else {"reference": ran(image, given)["embedding"]}
    )
    if "text" in parts:
        made.update(ran(parts["text"], given))
    found = ran(parts["compose"], made)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    return parts


def shape_of(parts: dict[str, ModelProto], name: str) -> list[str | int]:
    (value,) = parts[name].graph.output
    assert value.name == name
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


PIXEL_ROWS = graph_of(_ROW.replace("row", "embedding"), "uint8[n,4,4,3] image", "float[n,4] embedding")


@pytest.mark.parametrize(
    ("body", "reference", "text"),
    [
        (f"{_ROW}  {_READ}  end = Add(row, said)", None, ["n", 4]),
        (
            f"{_ROW}  {_READ}  b = MatMul(row, z)  c = Relu(row)  d = Add(b, c)  end = Mul(d, said)",
            None,
            ["n", 4],
        ),
        (f"{_OTHER}  {_READ}  end = Add(a, said)", ["n", 4], ["n", 4]),
        # Of one value and what follows from it without weights, it alone is handed on.
        (
            f"{_OTHER}  {_READ}  b = Relu(a)  c = Abs(a)  d = Mul(b, said)  end = Add(c, d)",
            ["n", 4],
            ["n", 4],
        ),
        (f"{_ROW}  a = MatMul(flat, v)  {_READ}  b = Mul(row, said)  end = Add(a, b)", ["n", 8], ["n", 4]),
        # The batch may stand second, as in PyTorch's attention and recurrent layers.
        (
            f"{_OTHER}  {_READ}  b = Unsqueeze(a, one)  c = Transpose<perm=[1, 0, 2]>(b)  d = MatMul(c, z)"
            "  e = Mul(d, said)  f = Transpose<perm=[1, 0, 2]>(e)  end = Squeeze(f, one)",
            ["n", 4],
            ["n", 4],
        ),
        (f"{_SEEN}  {_READ}  {_LONG}  a = MatMul(flat, v)  end = Where(mask, a, said)", ["n", 4], ["n", 5]),
        # Whole numbers are not handed on: float32 does not have all of them.
        (
            f"{_OTHER}  {_READ}  i = ArgMax<axis=1>(a)"
            "  b = GatherElements<axis=1>(said, i)  end = Add(b, said)",
            ["n", 4],
            ["n", 4],
        ),
        (
            f"{_OTHER}  {_READ}  b = Clip(a, , high)  c = Clip(said, , high)  end = Add(b, c)",
            ["n", 4],
            ["n", 4],
        ),
    ],
)
def test_the_parts_give_what_the_whole_gives(
    body: str, reference: list[str | int] | None, text: list[str | int]
) -> None:
    parts = held_against_the_whole(query_of(body), PIXEL_ROWS, _IMAGES["pixels"])
    assert (shape_of(parts, "reference") if "reference" in parts else None) == reference
    assert shape_of(parts, "text") == text
    assert [value.name for value in parts["compose"].graph.input] == ["reference", "text"]
    heavy = {"w", "v", "u", "words"}
    assert heavy.isdisjoint(tensor.name for tensor in parts["compose"].graph.initializer)


def test_what_counts_a_batch_depends_on_neither_side() -> None:
    """The exporter asks one input for all: of an image encoder's class token, the texts' lengths."""
    body = (
        f"count = Shape<start=0, end=1>(lengths)  shape = Concat<axis=0>(count, four)  {_OTHER}  {_READ}"
        "  first = Expand(nothing, shape)  b = Concat<axis=1>(a, first)  c = Concat<axis=1>(said, first)"
        "  d = Mul(b, c)  end = Slice(d, zero, four, one)"
    )
    parts = held_against_the_whole(query_of(body), PIXEL_ROWS, _IMAGES["pixels"])
    assert [value.name for value in parts["reference"].graph.input] == ["image"]
    assert [value.name for value in parts["text"].graph.input] == ["tokens", "lengths"]


@pytest.mark.parametrize(("read", "given"), [("row", "reference"), ("a", "reference"), ("said", "text")])
def test_what_no_term_depends_on_is_not_asked_for(read: str, given: str) -> None:
    body = f"{_ROW}  a = MatMul(flat, v)  {_READ}  end = Relu({read})"
    parts = held_against_the_whole(query_of(body), PIXEL_ROWS, _IMAGES["pixels"])
    assert [value.name for value in parts["compose"].graph.input] == [given]
    assert parts.keys() - {"compose"} == ({given} if read != "row" else set())


def test_a_query_of_neither_is_left_in_one_piece() -> None:
    body = "count = Shape<start=0, end=1>(image)  of = Concat<axis=0>(count, four)  end = Expand(nothing, of)"
    assert apart(query_of(body), PIXEL_ROWS) is None


def test_results_of_one_side_are_handed_on() -> None:
    """As weights that follow from the image alone."""
    query = query_of(
        f"{_OTHER}  {_READ}  end = Add(a, said)", weights="b = Abs(a)  weights = Unsqueeze(b, one)"
    )
    assert shape_of(held_against_the_whole(query, PIXEL_ROWS, _IMAGES["pixels"]), "reference") == ["n", 4]


def test_features_may_be_the_reference_themselves() -> None:
    given = "float[n,48] image"
    image = graph_of("embedding = MatMul(image, w)", given, "float[n,4] embedding")
    body = f"{_READ}  wide = Tile(said, twelve)  b = Mul(image, wide)  end = MatMul(b, v)"
    parts = held_against_the_whole(query_of(body, given), image, _IMAGES["features"])
    assert shape_of(parts, "reference") == ["n", 48]


def test_a_row_is_told_by_its_weights() -> None:
    """The same nodes with other weights are another encoder."""
    other = graph_of(_ROW.replace("row", "embedding"), "uint8[n,4,4,3] image", "float[n,4] embedding")
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(_WEIGHTS["w"] + np.float32(1e-6), "w"))
    body = f"{_ROW}  {_READ}  end = Add(row, said)"
    given = {"image": _IMAGES["pixels"], **_TEXT}
    assert "reference" not in apart(query_of(body), PIXEL_ROWS)
    parts = apart(query_of(body), other)
    expected = ran(query_of(body), given)["numerators"]
    found = ran(parts["compose"], {**ran(parts["reference"], given), **ran(parts["text"], given)})[
        "numerators"
    ]
    np.testing.assert_array_equal(found, expected)


def test_what_may_be_infinite_is_not_handed_on() -> None:
    """A mask that attention adds: embeddings are compared, lowered and judged, and have to be finite."""
    body = (
        f"{_LONG}  beyond = Where(mask, least, none)  {_OTHER}  {_READ}  b = MatMul(said, z)"
        "  c = Concat<axis=1>(beyond, b)  d = Slice(c, zero, four, one)  e = Add(a, d)"
        "  end = Softmax<axis=1>(e)"
    )
    parts = held_against_the_whole(query_of(body), PIXEL_ROWS, _IMAGES["pixels"])
    assert np.isfinite(ran(parts["text"], _TEXT)["text"]).all()
    assert {"words", "z"}.isdisjoint(tensor.name for tensor in parts["compose"].graph.initializer)
