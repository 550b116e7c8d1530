"""Tiny real bundles, made with ONNX operators alone: the shape of each kind of system, no torch.

The image is 8 x 8, a row has 8 dimensions, the vocabulary is a few words; the arithmetic is ARTEMIS'
(or a plain cosine), with fixed random weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from cir_infer.bundle import write_bundle
from cir_infer.bundle.manifest import (
    CenterCrop,
    Explain,
    FeatureInput,
    Manifest,
    PixelInput,
    Resize,
    TextInput,
    ToRgb,
)

SIDE, DIM, HIDDEN, FEATURES = 8, 8, 6, 12
TOKENS = 3
"""Vectors of a row of the system "tokens"."""
SPECIALS = ["<pad>", "<start>", "<and>", "<end>", "<unk>"]
WORDS = ["is", "red", "blue", "green", "longer", "shorter", "and", "more", "a", "square"]

_TYPES = {"u8": TensorProto.UINT8, "f32": TensorProto.FLOAT, "i32": TensorProto.INT32}


@dataclass
class GraphBuilder:
    """Collects nodes and weights; a node's output is named by its last argument."""

    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def l2(self, name: str, output: str) -> str:
        """Divide by the Euclidean norm over the last axis."""
        self.add("ReduceL2", [name], f"{output}_norm", axes=[-1], keepdims=1)
        self.constant(f"{output}_tiny", 1e-12)
        self.add("Max", [f"{output}_norm", f"{output}_tiny"], f"{output}_safe")
        return self.add("Div", [name, f"{output}_safe"], output)

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> bytes:
        def infos(tensors: dict[str, Any]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, _TYPES[dtype], shape)
                for name, (dtype, shape) in tensors.items()
            ]

        graph = helper.make_graph(self.nodes, "tiny", infos(inputs), infos(outputs), self.weights)
        model: ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        checker.check_model(model)
        return model.SerializeToString()


def image_graph(output: str = "embedding", dim: int = DIM, seed: int = 0, features: bool = False) -> bytes:
    g = GraphBuilder()
    size = FEATURES if features else SIDE * SIDE * 3
    g.constant("w", np.random.default_rng(seed).normal(size=(size, dim)))
    if features:
        flat = "image"
    else:
        g.add("Cast", ["image"], "float", to=TensorProto.FLOAT)
        g.constant("half", 127.5)
        g.add("Sub", ["float", "half"], "centred")
        flat = g.add("Flatten", ["centred"], "flat", axis=1)
    g.l2(g.add("MatMul", [flat, "w"], "linear"), output)
    image = ("f32", ["n", FEATURES]) if features else ("u8", ["n", SIDE, SIDE, 3])
    return g.model({"image": image}, {output: ("f32", ["n", dim])})


def explain_graph(dim: int = DIM, seed: int = 0) -> bytes:
    """What goes on from `image_graph`: each pixel by itself through its weights, and a constant of zeros."""
    g = GraphBuilder()
    weights = np.random.default_rng(seed).normal(size=(SIDE * SIDE * 3, dim))
    g.constant("of_pixels", weights.reshape(SIDE, SIDE, 3, dim))
    g.constant("between", [3], np.int64)
    g.add("Unsqueeze", ["centred", "between"], "as_row")
    g.add("MatMul", ["as_row", "of_pixels"], "products")
    g.add("Squeeze", ["products", "between"], "parts")
    g.constant("nothing", 0.0)
    g.add("Mul", ["linear", "nothing"], "constant")
    outputs = {"parts": ["n", SIDE, SIDE, dim], "constant": ["n", dim]}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(g.nodes, "tiny", [], infos, g.weights)
    rest: bytes = helper.make_model(graph).SerializeToString()
    return rest


def tokens_graph() -> bytes:
    """Several vectors a picture, each of length one."""
    g = GraphBuilder()
    g.constant("w", np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, TOKENS * DIM)))
    g.add("Cast", ["image"], "float", to=TensorProto.FLOAT)
    g.constant("half", 127.5)
    g.add("Sub", ["float", "half"], "centred")
    g.add("MatMul", [g.add("Flatten", ["centred"], "flat", axis=1), "w"], "linear")
    g.constant("shape", [-1, TOKENS, DIM], np.int64)
    g.l2(g.add("Reshape", ["linear", "shape"], "split"), "embedding")
    return g.model({"image": ("u8", ["n", SIDE, SIDE, 3])}, {"embedding": ("f32", ["n", TOKENS, DIM])})


def mean_of_tokens_graph() -> bytes:
    """One unweighted term: l2 of the mean of the reference's vectors plus the projected text."""
    g = GraphBuilder()
    g.add("ReduceMean", ["reference"], "mean", axes=[1], keepdims=0)
    g.constant("wm", np.random.default_rng(3).normal(size=(HIDDEN, DIM)))
    g.add("MatMul", ["text", "wm"], "from_text")
    g.l2(g.add("Sum", ["mean", "from_text"], "sum"), "query")
    g.constant("axis", [1], np.int64)
    g.add("Unsqueeze", ["query", "axis"], "numerators")
    return g.model(
        {"reference": ("f32", ["n", TOKENS, DIM]), "text": ("f32", ["n", HIDDEN])},
        {"numerators": ("f32", ["n", 1, DIM])},
    )


def text_graph() -> bytes:
    """Mean of the word vectors over the true length."""
    g = GraphBuilder()
    g.constant("embed", np.random.default_rng(1).normal(size=(len(SPECIALS) + len(WORDS), HIDDEN)))
    g.add("Gather", ["embed", "tokens"], "words")
    g.add("Shape", ["tokens"], "shape", start=1, end=2)
    g.constant("zero", 0, np.int64)
    g.constant("one", 1, np.int64)
    g.constant("first", [0], np.int64)
    g.add("Squeeze", ["shape", "first"], "steps")
    g.add("Range", ["zero", "steps", "one"], "positions")
    g.add("Cast", ["lengths"], "long_lengths", to=TensorProto.INT64)
    g.constant("last", [1], np.int64)
    g.add("Unsqueeze", ["long_lengths", "last"], "ends")
    g.add("Less", ["positions", "ends"], "inside")
    g.add("Cast", ["inside"], "mask", to=TensorProto.FLOAT)
    g.constant("deep", [2], np.int64)
    g.add("Unsqueeze", ["mask", "deep"], "mask3")
    g.add("Mul", ["words", "mask3"], "kept")
    g.add("ReduceSum", ["kept", "last"], "sum", keepdims=0)
    g.l2("sum", "text")
    return g.model(
        {"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}, {"text": ("f32", ["n", HIDDEN])}
    )


def artemis_graph() -> bytes:
    """Two weighted terms: implicit similarity and explicit matching."""
    g = GraphBuilder()
    random = np.random.default_rng(2)
    for name in ("wa", "wb", "wt"):
        g.constant(name, random.normal(size=(HIDDEN, DIM)))
    for side in ("a", "b"):
        g.add("MatMul", ["text", f"w{side}"], f"{side}_logits")
        g.add("Softmax", [f"{side}_logits"], side, axis=-1)
        g.add("Mul", [side, side], f"{side}2")
    g.add("Mul", ["a", "reference"], "ar")
    g.l2("ar", "ar_unit")
    g.add("Mul", ["a", "ar_unit"], "n1")
    g.l2(g.add("MatMul", ["text", "wt"], "tm"), "tm_unit")
    g.add("Mul", ["b", "tm_unit"], "n2")
    g.constant("axis", [1], np.int64)
    for name in ("n1", "n2", "a2", "b2"):
        g.add("Unsqueeze", [name, "axis"], f"{name}_term")
    g.add("Concat", ["n1_term", "n2_term"], "numerators", axis=1)
    g.add("Concat", ["a2_term", "b2_term"], "weights", axis=1)
    return g.model(
        {"reference": ("f32", ["n", DIM]), "text": ("f32", ["n", HIDDEN])},
        {"numerators": ("f32", ["n", 2, DIM]), "weights": ("f32", ["n", 2, DIM])},
    )


def cosine_graph(reference_dim: int = DIM, reference: bool = True, text: bool = True) -> bytes:
    """One unweighted term: l2 of the sum of the projected inputs that the system has."""
    g = GraphBuilder()
    random = np.random.default_rng(3)
    inputs: dict[str, Any] = {}
    if reference:
        inputs["reference"] = ("f32", ["n", reference_dim])
        g.constant("wr", random.normal(size=(reference_dim, DIM)))
        g.add("MatMul", ["reference", "wr"], "from_reference")
    if text:
        inputs["text"] = ("f32", ["n", HIDDEN])
        g.constant("wm", random.normal(size=(HIDDEN, DIM)))
        g.add("MatMul", ["text", "wm"], "from_text")
    parts = [f"from_{name}" for name in inputs]
    g.l2(g.add("Sum", parts, "sum"), "query")
    g.constant("axis", [1], np.int64)
    g.add("Unsqueeze", ["query", "axis"], "numerators")
    return g.model(inputs, {"numerators": ("f32", ["n", 1, DIM])})


def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(SPECIALS + WORDS)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex("[^a-zA-Z ]"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        pair="<start> $A <and> $B <end>",
        special_tokens=[("<start>", 1), ("<and>", 2), ("<end>", 3)],
    )
    return tokenizer.to_str().encode()


def members_of(system: str) -> dict[str, bytes]:
    """Graphs and tokenizer of one kind of system.

    "artemis" (weighted, two terms), "cosine" (one term), "separate" (a reference graph),
    "features" (pre-extracted features), "text-only" and "image-only" (compose takes one input), "tokens" (a
    row is several vectors).
    """
    members = {"image.onnx": image_graph(features=system == "features")}
    if system == "tokens":
        members["image.onnx"] = tokens_graph()
    if system == "separate":
        members["reference.onnx"] = image_graph("reference", dim=5, seed=9)
    if system != "image-only":
        members["text.onnx"] = text_graph()
        members["tokenizer.json"] = tokenizer_json()
    if system in ("artemis", "features"):
        members["compose.onnx"] = artemis_graph()
    elif system == "tokens":
        members["compose.onnx"] = mean_of_tokens_graph()
    else:
        members["compose.onnx"] = cosine_graph(
            5 if system == "separate" else DIM,
            reference=system != "text-only",
            text=system != "image-only",
        )
    return members


def manifest_of(system: str, **changes: Any) -> Manifest:
    members = members_of(system)
    weighted = system in ("artemis", "features")
    values: dict[str, Any] = {
        "system": system,
        "created_by": "tests",
        "embedding_dim": DIM,
        "terms": ("implicit_similarity", "explicit_matching") if weighted else ("similarity",),
        "weighted": weighted,
        "precision": "float32",
        "image": FeatureInput(FEATURES)
        if system == "features"
        else PixelInput(SIDE, SIDE, (ToRgb(), Resize(SIDE), CenterCrop(SIDE))),
        "text": None
        if system == "image-only"
        else TextInput(pad_id=0, unk_id=4, max_tokens=64, captions="pair"),
        "graphs": {name.removesuffix(".onnx"): name for name in members if name.endswith(".onnx")},
    }
    if system == "tokens":
        values |= {"tokens_per_item": TOKENS, "reduce": "max"}
    return Manifest(**{**values, **changes})


def int8_made_for(form: str) -> dict[str, Any]:
    """The fields of the manifest by which a bundle says which form its int8 graphs have."""
    return {"precision": "int8", "parity": {"precision": {"form": form}}}


def write_tiny_bundle(path: Path, system: str = "artemis", **changes: Any) -> Path:
    """A bundle of one kind of system at `path`; `changes` replace fields of its manifest."""
    write_bundle(path, manifest_of(system, **changes), members_of(system))
    return path


def write_explained_bundle(path: Path, system: str = "artemis") -> Path:
    """A bundle whose rows are known as sums over pixels."""
    manifest = manifest_of(system, explain=Explain("explain.onnx", SIDE, SIDE, True))
    write_bundle(path, manifest, {**members_of(system), "explain.onnx": explain_graph()})
    return path
