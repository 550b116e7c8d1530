"""Text encoders that look at less than they are given, which OpenVINO leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from cir_infer import Engine
from cir_infer.bundle import write_bundle
from cir_infer.errors import BundleError, DeviceError
from cir_infer.extras import is_installed
from tests.bundles import HIDDEN, GraphBuilder, manifest_of, members_of

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)


def reading(what: str, declared: tuple[str, ...]) -> bytes:
    """A text graph over "lengths" alone, a recurrent one that stops there, or over "nothing"."""
    g, random = GraphBuilder(), np.random.default_rng(0)
    g.constant("axes", [1], np.int64)
    g.add("Unsqueeze", [g.add("Cast", ["lengths"], "numbers", to=TensorProto.FLOAT), "axes"], "column")
    g.constant("weight", random.normal(size=(1, HIDDEN)))
    g.add("MatMul", ["column", "weight"], "text" if what == "lengths" else "vectors")
    if what == "nothing":
        g.add("Identity", ["weight"], "text")
    if what == "layers":
        for name, rows in (("W", HIDDEN), ("R", HIDDEN)):
            g.constant(name, random.normal(size=(1, 3 * HIDDEN, rows)))
        g.constant("first", [0], np.int64)
        g.add("Unsqueeze", ["vectors", "first"], "sequence")
        g.nodes.append(
            helper.make_node("GRU", ["sequence", "W", "R", "", "lengths"], ["", "last"], hidden_size=HIDDEN)
        )
        g.add("Squeeze", ["last", "first"], "text")
    kinds = {"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}
    return g.model({name: kinds[name] for name in declared}, {"text": ("f32", ["n", HIDDEN])})


def with_text(path: Path, graph: bytes) -> Path:
    write_bundle(path, manifest_of("artemis"), {**members_of("artemis"), "text.onnx": graph})
    return path


@pytest.mark.parametrize("declared", [("tokens", "lengths"), ("lengths",)])
def test_a_text_encoder_may_read_lengths_alone(tmp_path: Path, declared: tuple[str, ...]) -> None:
    """OpenVINO leaves out what nothing reads, and was said to have no tokens."""
    path = with_text(tmp_path / "lengths.cir", reading("lengths", declared))
    texts = ["is red", "is", "is red is red is"]
    with Engine(path, "cpu") as reference, Engine(path, "openvino") as found:
        expected = reference.encode_texts(texts)
        assert len({row.tobytes() for row in expected}) == 3
        np.testing.assert_allclose(found.encode_texts(texts), expected, rtol=1e-5)


def test_layers_that_stop_where_nothing_can_be_cut_are_told(tmp_path: Path) -> None:
    path = with_text(tmp_path / "layers.cir", reading("layers", ("tokens", "lengths")))
    said = "recurrent layers that stop at 'lengths' and reads no tokens to be cut.*use device='cpu'"
    with pytest.raises(DeviceError, match=said):
        Engine(path, "openvino")


def test_a_text_encoder_that_reads_nothing_is_told(tmp_path: Path) -> None:
    path = with_text(tmp_path / "nothing.cir", reading("nothing", ("tokens", "lengths")))
    with pytest.raises(BundleError, match=r"text of shape \(1, 6\) of 3 inputs; expected one for each"):
        Engine(path, "openvino")
