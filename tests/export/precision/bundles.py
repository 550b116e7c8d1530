"""A small convolutional bundle, made with ONNX operators alone, whose layers can be spoilt one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from PIL import Image

from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import CenterCrop, PixelInput, Resize, ToRgb
from tests.bundles import DIM, HIDDEN, GraphBuilder, manifest_of, members_of, text_graph

SIDE = 16
CHANNELS = 12


def convolutional(path: Path, scale: float = 1.0, outlier: float = 1.0) -> Path:
    """ARTEMIS over three convolutions, generalised mean and a projection.

    Args:
        path: where to.
        scale: of what "first" gives; "second" takes it back. Changes nothing in float32.
        outlier: of the channel of "first" that "second" hardly reads. Changes little in float32.
    """
    random = np.random.default_rng(5)
    g = GraphBuilder()
    g.add("Cast", ["image"], "read", to=TensorProto.FLOAT)
    g.add("Transpose", ["read"], "float", perm=[0, 3, 1, 2])
    g.constant("m.half", 127.5)
    g.add("Sub", ["float", "m.half"], "centred")
    g.add("Div", ["centred", "m.half"], "prepared")
    weights = [
        random.normal(size=(CHANNELS, ins, 3, 3)) / np.sqrt(9 * ins) for ins in (3, CHANNELS, CHANNELS)
    ]
    weights[0] *= scale
    weights[0][0] *= outlier
    weights[1] /= scale
    weights[1][:, 0] /= outlier
    x = "prepared"
    for name, weight in zip(("first", "second", "third"), weights, strict=True):
        g.constant(f"m.{name}.weight", weight)
        g.constant(f"m.{name}.bias", random.normal(size=CHANNELS) * 0.1 * (scale if name == "first" else 1))
        added = g.add("Conv", [x, f"m.{name}.weight", f"m.{name}.bias"], f"{name}_out", pads=[1, 1, 1, 1])
        x = g.add("Relu", [added], f"{name}_relu")
    g.add("Add", [x, "second_relu"], "residual")
    g.constant("m.floor", 1e-6)
    g.add("Clip", ["residual", "m.floor"], "positive")
    g.add("Mul", ["positive", "positive"], "square")
    g.add("Mul", ["square", "positive"], "cube")
    g.add("ReduceMean", ["cube"], "mean", axes=[2, 3], keepdims=0)
    g.constant("m.third_root", 1 / 3)
    g.add("Pow", ["mean", "m.third_root"], "pooled")
    g.constant("m.project.weight", random.normal(size=(DIM, CHANNELS)))
    g.constant("m.project.bias", random.normal(size=DIM))
    g.add("Gemm", ["pooled", "m.project.weight", "m.project.bias"], "linear", transB=1)
    g.l2("linear", "embedding")
    image = g.model({"image": ("u8", ["n", SIDE, SIDE, 3])}, {"embedding": ("f32", ["n", DIM])})
    return _written(path, image)


def attentive(path: Path, scores: float = 1.0, mask: float = 0.0) -> Path:
    """ARTEMIS over one block of attention with two heads, a bias of places between scores and softmax.

    Args:
        path: where to.
        scores: what the scores are multiplied with before their softmax, after it that is taken back.
        mask: the bias of the last place; float16 does not have -1e9.
    """
    random, width, places = np.random.default_rng(6), 16, SIDE
    g = GraphBuilder()
    g.add("Cast", ["image"], "float", to=TensorProto.FLOAT)
    g.constant("m.half", 127.5)
    g.add("Sub", ["float", "m.half"], "centred")
    g.add("Div", ["centred", "m.half"], "prepared")
    g.constant("rows", [0, places, 3 * SIDE], np.int64)
    g.add("Reshape", ["prepared", "rows"], "strips")

    def linear(name: str, x: str, ins: int, outs: int, scale: float = 1.0) -> str:
        g.constant(f"m.{name}.weight", scale * random.normal(size=(ins, outs)) / np.sqrt(ins))
        g.constant(f"m.{name}.bias", scale * 0.1 * random.normal(size=outs))
        return g.add(
            "Add", [g.add("MatMul", [x, f"m.{name}.weight"], f"{name}_product"), f"m.{name}.bias"], name
        )

    tokens = linear("strips_in", "strips", 3 * SIDE, width)
    g.constant("heads", [0, places, 2, width // 2], np.int64)
    g.constant("joined", [0, places, width], np.int64)
    for name, scale in (("queries", np.sqrt(scores)), ("keys", np.sqrt(scores)), ("values", 1.0)):
        parts = g.add("Reshape", [linear(name, tokens, width, width, scale), "heads"], f"{name}_parts")
        g.add("Transpose", [parts], f"{name}_heads", perm=[0, 2, 3, 1] if name == "keys" else [0, 2, 1, 3])
    g.add("MatMul", ["queries_heads", "keys_heads"], "scores")
    g.constant("m.factor", 1 / (scores * np.sqrt(width // 2)))
    g.add("Mul", ["scores", "m.factor"], "scaled")
    bias = random.normal(size=(1, 2, places, places))
    bias[..., -1] += mask
    g.constant("m.places", bias)
    g.add("Add", ["scaled", "m.places"], "biased")
    g.add("Softmax", ["biased"], "shares", axis=-1)
    g.add("MatMul", ["shares", "values_heads"], "mixed")
    g.add("Transpose", ["mixed"], "mixed_places", perm=[0, 2, 1, 3])
    g.add("Reshape", ["mixed_places", "joined"], "mixed_tokens")
    g.add("Add", [tokens, linear("out", "mixed_tokens", width, width)], "residual")
    g.add("ReduceMean", ["residual"], "mean", axes=[1], keepdims=0)
    g.l2(linear("project", "mean", width, DIM), "embedding")
    image = g.model({"image": ("u8", ["n", SIDE, SIDE, 3])}, {"embedding": ("f32", ["n", DIM])})
    return _written(path, image)


def wordy(path: Path, outlier: float = 1.0, peak: float = 1.0, everywhere: bool = False) -> Path:
    """`convolutional` with a text encoder of two products on every word.

    Args:
        path: where to.
        outlier: of the channel of "first" that "second" hardly reads. Changes little in float32.
        peak: of all that "first" gives, before it is cut off.
        everywhere: the outlier is in a channel of the words' vectors too, which "first" hardly reads.
    """
    random, wide = np.random.default_rng(7), 24
    first = random.normal(size=(HIDDEN, wide)) / np.sqrt(HIDDEN)
    second = random.normal(size=(wide, HIDDEN)) / np.sqrt(wide)
    first[:, 0] *= outlier
    second[0] /= outlier
    text = onnx.load_from_string(text_graph())
    if everywhere:
        (vectors,) = (tensor for tensor in text.graph.initializer if tensor.name == "embed")
        values = numpy_helper.to_array(vectors).copy()
        values[:, 0] *= outlier
        vectors.CopyFrom(numpy_helper.from_array(values, "embed"))
        first[0] /= outlier
    g = GraphBuilder()
    g.add("MatMul", ["words", g.constant("t.first.weight", first * peak)], "expanded")
    g.constant("t.least", 0)
    g.constant("t.most", 4 * outlier)
    g.add("Clip", ["expanded", "t.least", "t.most"], "active")
    g.add("MatMul", ["active", g.constant("t.second.weight", second)], "meanings")
    more = onnx.load_from_string(
        g.model({"words": ("f32", ["n", "t", HIDDEN])}, {"meanings": ("f32", ["n", "t", HIDDEN])})
    )
    at = next(number for number, node in enumerate(text.graph.node) if "words" in node.input)
    reader = text.graph.node[at]
    reader.input[list(reader.input).index("words")] = "meanings"
    nodes = [*text.graph.node[:at], *more.graph.node, *text.graph.node[at:]]
    del text.graph.node[:]
    text.graph.node.extend(nodes)
    text.graph.initializer.extend(more.graph.initializer)
    source = Bundle(convolutional(path))
    members = {**source.contents(source.manifest.members), "text.onnx": text.SerializeToString()}
    write_bundle(path, source.manifest, members)
    return path


def photographs(folder: Path, count: int = 48) -> Path:
    """Smooth coloured pictures."""
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder


def _written(path: Path, image: bytes) -> Path:
    members = {**members_of("artemis"), "image.onnx": image}
    pixels = PixelInput(SIDE, SIDE, (Resize(SIDE, "bilinear"), CenterCrop(SIDE), ToRgb()))
    write_bundle(path, replace(manifest_of("artemis"), image=pixels), members)
    return path
