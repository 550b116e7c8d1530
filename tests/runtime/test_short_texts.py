"""A bundle of short texts and few words is warmed up, tried and kept as others are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from cir_infer import Engine
from cir_infer.bundle import write_bundle
from cir_infer.bundle.manifest import TextInput
from cir_infer.bundle.model import Model
from cir_infer.extras import is_installed
from cir_infer.runtime.kept.graphs import load_kept
from cir_infer.runtime.kept.names import StoredGraph
from cir_infer.runtime.onnx import OnnxBackend
from tests.bundles import HIDDEN, GraphBuilder, manifest_of, members_of

WORDS = ["<pad>", "<unk>", "red"]
MOST = 2


def text_graph(words: int = len(WORDS), quantised: bool = False) -> bytes:
    """Words and a vector for the number of them, of which there are as many as a text may have tokens."""
    random = np.random.default_rng(1)
    g = GraphBuilder()
    g.constant("embed", random.normal(size=(words, HIDDEN)))
    g.constant("counts", random.normal(size=(MOST, HIDDEN)))
    g.constant("one", 1, np.int32)
    g.constant("axis", [1], np.int64)
    g.add("Gather", ["embed", "tokens"], "words")
    g.add("ReduceSum", ["words", "axis"], "sum", keepdims=0)
    g.add("Gather", ["counts", g.add("Sub", ["lengths", "one"], "last")], "count")
    here = g.add("Add", ["sum", "count"], "both")
    if quantised:
        g.constant("scale", np.array(0.1))
        here = g.add(
            "DequantizeLinear", [g.add("QuantizeLinear", [here, "scale"], "whole"), "scale"], "again"
        )
    g.l2(here, "text")
    inputs: dict[str, Any] = {"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}
    return g.model(inputs, {"text": ("f32", ["n", HIDDEN])})


@pytest.mark.parametrize("fixed", [False, True])
def test_a_bundle_of_short_texts_is_warmed_up(tmp_path: Path, fixed: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    spec = TextInput(pad_id=0, unk_id=1, max_tokens=MOST, captions=" ", fixed_length=fixed)
    members = {
        **members_of("artemis"),
        "text.onnx": text_graph(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }
    write_bundle(tmp_path / "b.cir", manifest_of("artemis", text=spec), members)
    with Engine(tmp_path / "b.cir", "cpu") as engine:
        samples = engine.warm_up()
        assert samples.text is not None and samples.text.shape == engine.encode_texts(["red"]).shape


def test_the_graph_of_short_texts_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    model = text_graph(words=5)
    digest = hashlib.sha256(model).hexdigest()
    stored = StoredGraph(digest, len(model), None, lambda: Model(model), tokens=MOST)
    load_kept(OnnxBackend("cpu", 1), "text", stored, least=0)
    assert len(list((tmp_path / "graphs").glob("text-*.graph"))) == 1


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_the_int8_graph_of_short_texts_is_tried_with_such() -> None:
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

    backend = OpenVinoBackend(1, "int8", tokens=MOST)
    graph = backend.load("text", Model(text_graph(words=5, quantised=True)))
    feeds = {"tokens": np.ones((1, MOST), np.int32), "lengths": np.full(1, MOST, np.int32)}
    assert graph.run(feeds)["text"].shape == (1, HIDDEN)
