"""What the exporter writes: dynamic axes, opset 17, no control flow, and PyTorch's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cir_export.graphs import EXPLAIN, export, export_graphs
from cir_export.graphs.export import Graph, check_graph
from cir_export.graphs.operators import one_table_of_operators
from cir_export.graphs.opset import lower_opset
from cir_export.models import RetrievalModel, Terms, build_model, unit
from cir_export.precision.float16 import to_float16
from cir_export.precision.islands import float32_islands
from cir_export.preprocessing import plain_resize
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import ExportError
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.text_graph import match_text_graph
from tests.emulation.emulated import RECURRENT, EmulatedDevice
from tests.export.tiny import config

TEXTS = {
    "bigru": {"encoder": "bigru", "vocabulary_size": 30, "word_dim": 10},
    "lstm": {"encoder": "lstm", "vocabulary_size": 30, "word_dim": 10, "hidden": 12},
    "lstm-last": {"encoder": "lstm-last", "vocabulary_size": 30, "word_dim": 10, "hidden": 12},
}


@pytest.fixture(scope="module", params=sorted(TEXTS))
def exported(request: pytest.FixtureRequest) -> tuple[RetrievalModel, dict[str, bytes]]:
    """A model's graphs; its text graph alone where only that is another than the first one's."""
    torch.manual_seed(0)
    model = build_model(config(text=TEXTS[request.param])).eval()
    graphs = export._graphs
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "bigru":
            patch.setattr(export, "_graphs", lambda *given: [g for g in graphs(*given) if g.name == "text"])
        return model, export_graphs(model, plain_resize(24))


def run(model: bytes, feeds: Mapping[str, Any]) -> list[np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})


def test_graphs_are_standard_and_dynamic(exported: tuple[RetrievalModel, dict[str, bytes]]) -> None:
    graphs = {name: content for name, content in exported[1].items() if name != EXPLAIN}
    axes = {
        "image": {"image": ["n", 24, 24, 3]},
        "text": {"tokens": ["n", "t"], "lengths": ["n"]},
        "compose": {"reference": ["n", 24], "text": ["n", 24]},
    }
    assert set(graphs) in (set(axes), {"text"})
    for name, content in graphs.items():
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert not {"If", "Loop", "Scan"} & {node.op_type for node in model.graph.node}
        for value in model.graph.input:
            dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert dims == axes[name][value.name]
    recurrent = [n for n in onnx.load_from_string(graphs["text"]).graph.node if n.op_type in ("GRU", "LSTM")]
    assert len(recurrent) == 1


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_recurrent_kernel_takes_the_text_graph(
    exported: tuple[RetrievalModel, dict[str, bytes]], precision: str
) -> None:
    """Its weights, and PyTorch's numbers, on the emulated GPU."""
    model, graphs = exported
    graph = graphs["text"]
    if precision == "float16":
        whole = onnx.load_from_string(graph)
        graph = to_float16(whole, float32_islands(whole)).SerializeToString()
    text = match_text_graph(read_onnx_model(graph))
    assert text.least_square is not None
    encoder = RecurrentEncoder(text, EmulatedDevice(kernels=RECURRENT), 9)
    tokens = torch.randint(0, 30, (4, 9), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([9, 1, 4, 7], dtype=torch.int32)
    with torch.no_grad():
        expected = model.encode_text(tokens.long(), lengths)
    found = encoder.run({"tokens": tokens.numpy(), "lengths": lengths.numpy()})["text"]
    np.testing.assert_allclose(found, expected, atol={"float32": 1e-6, "float16": 2e-3}[precision])


def test_graphs_do_not_tell_where_they_were_made(
    exported: tuple[RetrievalModel, dict[str, bytes]],
) -> None:
    for content in exported[1].values():
        assert b".py" not in content and b"site-packages" not in content


def test_what_the_exporter_prints_stays_out_of_a_commands_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch 2.8 tells how often it has rewritten the graph."""
    to_onnx = torch.onnx.export

    def talkative(*args: Any, **options: Any) -> Any:
        print("Applied 19 of general pattern rewrite rules.")
        return to_onnx(*args, **options)

    graphs = export._graphs
    monkeypatch.setattr(export, "_graphs", lambda *given: graphs(*given)[-1:])  # the others take seconds
    monkeypatch.setattr(torch.onnx, "export", talkative)
    assert export_graphs(build_model(config("image-only")).eval(), plain_resize(24))
    assert capsys.readouterr().out == ""


def test_the_exporters_table_is_kept_only_while_we_export(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry
    utils = pytest.importorskip("torch._export.utils")
    looked: list[int] = []
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", look := lambda: looked.append(1), False)
    original = vars(registry)["from_torchlib"]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), one_table_of_operators():
            assert registry.from_torchlib() is registry.from_torchlib()
            for _ in range(3):
                utils._materialize_cpp_cia_ops()
            raise ZeroDivisionError
    assert vars(registry)["from_torchlib"] is original and utils._materialize_cpp_cia_ops is look
    assert len(looked) == 2, "whoever adds operators between two graphs must find them in the second"


def test_graphs_give_pytorchs_numbers_for_every_batch_and_length(
    exported: tuple[RetrievalModel, dict[str, bytes]],
) -> None:
    model, graphs = exported
    random = torch.Generator().manual_seed(3)
    for n in (1, 2, 5):
        images = torch.randint(0, 256, (n, 24, 24, 3), dtype=torch.uint8, generator=random)
        with torch.no_grad():
            rows = model.encode_gallery(images)
        if "image" in graphs:
            np.testing.assert_allclose(run(graphs["image"], {"image": images})[0], rows, atol=1e-6)
        for t in (1, 2, 17):
            tokens = torch.randint(0, 30, (n, t), dtype=torch.int32, generator=random)
            lengths = torch.randint(1, t + 1, (n,), dtype=torch.int32, generator=random)
            with torch.no_grad():
                text = model.encode_text(tokens, lengths)
                terms = model.compose(rows, text)
            found = run(graphs["text"], {"tokens": tokens, "lengths": lengths})[0]
            np.testing.assert_allclose(found, text, atol=1e-6)
            if "compose" in graphs:
                numerators, weights = run(graphs["compose"], {"reference": rows, "text": text})
                np.testing.assert_allclose(numerators, terms.numerators, atol=1e-6)
                np.testing.assert_allclose(weights, terms.weights, atol=1e-6)


def test_a_reference_graph_and_absent_inputs() -> None:
    """A system whose query side sees images differently and whose compose graph reads no text."""

    class Towers(RetrievalModel):
        system, term_names, reference_is_gallery_row, composes = "towers", ("x",), False, ("reference",)

        def __init__(self) -> None:
            super().__init__(6)
            self.gallery, self.query = nn.Linear(12, 6), nn.Conv2d(3, 4, 2, 2)
            self.embed = nn.Embedding(9, 5)

        @classmethod
        def from_config(cls, config: Mapping[str, Any]) -> RetrievalModel:
            return cls()

        def encode_gallery(self, images: Tensor) -> Tensor:
            return unit(self.gallery(images.float().reshape(images.shape[0], 12)))

        def encode_reference(self, images: Tensor) -> Tensor:
            return self.query(images.permute(0, 3, 1, 2).float())

        def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            return self.embed(tokens).mean(1)

        def compose(self, reference: Tensor, text: Tensor) -> Terms:
            return Terms(reference.mean((2, 3)).repeat(1, 2)[:, None, :6], None)

    torch.manual_seed(0)
    model = Towers().eval()
    graphs = export_graphs(model, plain_resize(2))
    assert set(graphs) == {"image", "reference", "text", "compose"}
    images = torch.randint(0, 256, (4, 2, 2, 3), dtype=torch.uint8)
    with torch.no_grad():
        reference = model.encode_reference(images)
        expected = model.compose(reference, torch.empty(0))
    np.testing.assert_allclose(run(graphs["reference"], {"image": images})[0], reference, rtol=1e-5)
    np.testing.assert_allclose(run(graphs["compose"], {"reference": reference})[0], expected[0], rtol=1e-5)


def test_a_table_of_places_is_for_as_many_tokens_as_a_text_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers' text encoders have one: none of them could be exported."""
    torch.manual_seed(0)
    model, places = build_model(config()).eval(), torch.randn(1, 12, 24)
    words = torch.randn(30, 24)

    def encode_text(tokens: Tensor, lengths: Tensor) -> Tensor:
        return (words[tokens.long()] + places[:, : tokens.shape[1]]).sum(1)

    monkeypatch.setattr(model, "encode_text", encode_text)
    graphs = export._graphs
    monkeypatch.setattr(export, "_graphs", lambda *given: [g for g in graphs(*given) if g.name == "text"])
    with pytest.raises(ExportError, match="Constraints violated"):
        export_graphs(model, plain_resize(24))
    with pytest.raises(ExportError, match=r"<= 12; .* set max_tokens to no more"):
        export_graphs(model, plain_resize(24), tokens=13)
    text = export_graphs(model, plain_resize(24), tokens=12)["text"]
    for length in (1, 2, 12):
        tokens = torch.randint(0, 30, (2, length), dtype=torch.int32)
        lengths = torch.full((2,), length, dtype=torch.int32)
        feeds = {"tokens": tokens, "lengths": lengths}
        used = {given.name for given in onnx.load_from_string(text).graph.input}
        found = run(text, {name: value for name, value in feeds.items() if name in used})[0]
        np.testing.assert_allclose(found, encode_text(tokens, lengths), rtol=1e-4, atol=1e-5)


def test_a_model_that_freezes_the_batch_is_refused() -> None:
    class Frozen(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.stack([row.sum().reshape(1) for row in image])  # a loop over three rows

    from cir_export.graphs.export import _export

    graph = Graph("image", Frozen(), {"image": torch.rand(3, 4)}, {"image": {0: "n"}}, ("embedding",))
    with pytest.raises(ExportError, match="image graph"):
        _export(graph, {}, None)


# ---- the checks and the opset, on graphs made by hand


def by_hand(nodes: list[Any], n: Any = "n", opset: int = 18, constants: Mapping[str, Any] = {}) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [n, 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [n, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


SPEC = Graph("image", nn.Identity(), {"image": torch.ones(3, 4)}, {"image": {0: "n"}}, ("embedding",))


@pytest.mark.parametrize(
    "op", ["ReduceMax", "ReduceMin", "ReduceMean", "ReduceL2", "ReduceL1", "ReduceLogSumExp", "ReduceProd"]
)
def test_reductions_keep_their_meaning_in_opset_17(op: str) -> None:
    model = by_hand(
        [helper.make_node(op, ["image", "axes"], ["embedding"])], constants={"axes": np.array([1], np.int64)}
    )
    x = torch.rand(5, 4)
    before = run(model.SerializeToString(), {"image": x})
    lower_opset(model)
    check_graph(model, SPEC)
    np.testing.assert_array_equal(run(model.SerializeToString(), {"image": x})[0], before[0])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                helper.make_node("Shape", ["image"], ["s"]),
                helper.make_node("ReduceMax", ["image", "s"], ["embedding"]),
            ],
            "computed",
        ),
        ([helper.make_node("CenterCropPad", ["image", "s"], ["embedding"])], "CenterCropPad"),
        ([helper.make_node("ReduceMax", ["image"], ["embedding"], noop_with_empty_axes=1)], "no axes"),
    ],
)
def test_what_opset_17_cannot_say_is_refused(nodes: list[Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        lower_opset(by_hand(nodes))


def test_graphs_that_a_bundle_cannot_hold_are_refused() -> None:
    mean = helper.make_node("ReduceMean", ["image"], ["embedding"], axes=[1])
    check_graph(by_hand([mean], opset=17), SPEC)
    with pytest.raises(ExportError, match=r"\[3, 4\]; expected \['n', 4\]"):
        check_graph(by_hand([mean], n=3, opset=17), SPEC)
    with pytest.raises(ExportError, match="opsets"):
        check_graph(by_hand([mean], opset=18), SPEC)
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    control = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ExportError, match="control flow"):
        check_graph(by_hand([mean, control], opset=17), SPEC)
    with pytest.raises(ExportError, match="inputs"):
        check_graph(
            by_hand([mean], opset=17),
            Graph("image", nn.Identity(), {"picture": torch.rand(3, 4)}, {}, ("embedding",)),
        )
