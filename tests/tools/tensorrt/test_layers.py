"""The report on plans reads what TensorRT's builder says, and the committed page is what it read."""

from __future__ import annotations

import json

from tools.tensorrt import layers as tensorrt_layers

_TENSOR = (
    "[ { Name: %s, Dimensions: [1,8], Strides: [8,1], StrideOrder: [1,0], Datatype: %s, Format: (Linear) }]"
)
LOG = "\n".join(
    f"Name: {name}, LayerType: {kind}, Inputs: {_TENSOR % (read, dtype) if dtype else '[]'}, Constants: "
    f"[ {{ Name: w, Datatype: Float }}], Outputs: [], TacticName: , StreamId: 0, Metadata: "
    + "".join(f"[ONNX Layer: {node}]" for node in nodes)
    for name, kind, read, dtype, nodes in (
        ("__mye1_0_myl3_0", "shape_call", "x", "", ()),
        ("__myl_CastTran_myl3_1", "kgen", "x", "UInt8", ("cast", "turn")),
        ("__mye15024_myl3_9", "signal", "x", "", ()),
        ("__mye15026_myl3_10", "wait", "x", "", ()),
        ("node_conv [profile 1]_myl1_1", "correlation", "x", "Half", ("conv", "relu")),
        ("__myl_Move_myl1_2", "kgen", "x", "Half", ("turn",)),
        # Of a plan whose layers have plain names, what they read tells the profile.
        ("__mye8052_0_myl2_0", "shape_call", "x", "", ()),
        ("__myl_GathAdd_myl2_1", "kgen", "tokens [profile 1]", "Int32", ("turn",)),
        ("conv_myl3_2", "correlation", "x", "Int8", ("conv", "relu")),
        ("__myl_MulAddRelu_myl3_5", "kgen", "x", "Float", ("conv",)),
        ("__myl_MulSoftMul_myl3_3", "kgen", "x", "Half", ("scores", "soft", "mix")),
        ("__myl_AddMulSum_myl3_4", "kgen", "x", "Float", ("out",)),
    )
)
OPERATORS = {
    "cast": "Cast",
    "turn": "Transpose",
    "conv": "Conv",
    "relu": "Relu",
    "scores": "MatMul",
    "soft": "Softmax",
    "mix": "MatMul",
    "out": "Gemm",
}


def test_layers_of_the_first_profile_are_counted_by_what_they_multiply() -> None:
    layers = tensorrt_layers.layers_of("said before\n" + LOG + "\nName: image, IOMode: Input")
    assert tensorrt_layers.summary_of(layers, OPERATORS, 1234) == {
        "nodes": 8,
        "layers": 6,
        "products": {"Float matrix product": 1, "Half attention": 1, "Int8 convolution": 1},
        "moves": 1,
        "host": 1,
        "bytes": 1234,
    }


def test_the_page_has_the_committed_table() -> None:
    found = json.loads(tensorrt_layers.RESULT.read_text())["systems"]
    text = tensorrt_layers.PAGE.read_text("utf-8")
    assert tensorrt_layers.page(text, found) == text, "run tools/tensorrt/layers.py --update"
