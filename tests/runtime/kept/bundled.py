"""A graph of a bundle, and what is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.model import Model
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.kept.graphs import Keeping, load_kept
from cir_infer.runtime.kept.names import StoredGraph
from cir_infer.runtime.onnx import OnnxBackend

FEEDS = {"image": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}


def encoder(seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.standard_normal((32, 64)).astype(np.float32), "first"),
        numpy_helper.from_array(random.standard_normal((64, 48)).astype(np.float32), "second"),
        numpy_helper.from_array(random.standard_normal(48).astype(np.float32), "small"),
    ]
    nodes = [
        helper.make_node("MatMul", ["image", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Add", ["c", "small"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 32])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 48])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_runtime() -> Keeping:
    return OnnxBackend("cpu", 1)


class Bundled:
    """A graph in a bundle, which counts how often it is read.

    Args:
        seed: of its weights.
        checked_for: see `StoredGraph`.
        backend: makes what runs it.
        beside: see `StoredGraph`.
    """

    def __init__(
        self,
        seed: int = 0,
        checked_for: Any = None,
        backend: Callable[[], Keeping] = onnx_runtime,
        beside: bool = False,
    ) -> None:
        self.model, self.reads, self._backend = encoder(seed), 0, backend
        digest = hashlib.sha256(self.model).hexdigest()
        self.stored = StoredGraph(digest, len(self.model), checked_for, self.read, beside=beside)
        self.right = backend().load("image", Model(self.model)).run(FEEDS)["embedding"]

    def read(self) -> Model:
        self.reads += 1
        return Model(self.model)

    def answers(self, ahead: ReadAhead | None = None) -> bool:
        """Open it, whatever is kept; its numbers are the bundle's, to the last bit."""
        found = self.stored.found if ahead is None else partial(ahead.take, "image")
        stored = self.stored._replace(found=found)
        graph = load_kept(self._backend(), "image", stored, least=0)
        return np.array_equal(graph.run(FEEDS)["embedding"], self.right)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.graph"))
