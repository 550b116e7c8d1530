"""Text graphs with a recurrent layer, node by node as the exporter writes them, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.bundles import GraphBuilder

GATES = {"GRU": 3, "LSTM": 4}


def recurrent_graph(
    op: str = "GRU",
    directions: int = 2,
    hidden: int = 13,
    width: int = 7,
    words: int = 11,
    over_time: bool = False,
    out: int | None = None,
    unit: bool = True,
    seed: int = 0,
    **attributes: Any,
) -> bytes:
    """A GRU or LSTM over `words` word vectors of `width`; `out` values if there is a linear layer."""
    g, random = GraphBuilder(), np.random.default_rng(seed)
    rows, last = GATES[op] * hidden, directions * hidden
    g.constant("embed", random.normal(size=(words, width)))
    g.constant("W", 0.5 * random.normal(size=(directions, rows, width)))
    g.constant("R", random.normal(size=(directions, rows, hidden)) / np.sqrt(hidden))
    g.constant("B", 0.5 * random.normal(size=(directions, 2 * rows)))
    g.add("Gather", ["embed", "tokens"], "words", axis=0)
    g.add("Transpose", ["words"], "turned", perm=[1, 0, 2])
    kept = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if op == "GRU":
        kept["linear_before_reset"] = 1
    g.add(op, ["turned", "W", "R", "B", "lengths"], "outputs", **{**kept, **attributes})
    g.nodes[-1].output.append("states")
    value = over_time_of(g, last) if over_time else last_of(g, last)
    if out is not None:
        g.constant("project", random.normal(size=(out, last)))
        g.constant("bias", random.normal(size=out))
        value = g.add("Gemm", [value, "project", "bias"], "linear" if unit else "text", transB=1)
    if unit:
        divide(g, value)
    elif out is None:
        g.nodes[-1].output[0] = "text"
    outputs = {"text": ("f32", ["n", out or last])}
    return g.model({"tokens": ("i32", ["n", "t"]), "lengths": ("i32", ["n"])}, outputs)


def last_of(g: GraphBuilder, last: int) -> str:
    g.add("Transpose", ["states"], "by_text", perm=[1, 0, 2])
    g.constant("flat", [-1, last], np.int64)
    return g.add("Reshape", ["by_text", "flat"], "last")


def over_time_of(g: GraphBuilder, last: int) -> str:
    for name, value in (("zero", 0), ("one", 1)):
        g.constant(name, value, np.int64)
    for name, value in (("axis0", [0]), ("axis1", [1]), ("axis2", [-1]), ("width", [last])):
        g.constant(name, value, np.int64)
    g.add("Shape", ["tokens"], "t", start=1, end=2)
    g.add("Shape", ["lengths"], "n", start=0, end=1)
    g.add("Squeeze", ["t"], "steps")
    g.add("Range", ["zero", "steps", "one"], "positions")
    g.add("Unsqueeze", ["positions", "axis0"], "row")
    g.add("Unsqueeze", ["lengths", "axis1"], "column")
    g.add("Cast", ["column"], "ends", to=7)
    g.add("Less", ["row", "ends"], "inside")
    g.add("Unsqueeze", ["inside", "axis2"], "mask")
    g.add("Transpose", ["outputs"], "by_text", perm=[2, 0, 1, 3])
    g.add("Concat", ["n", "t", "width"], "shape", axis=0)
    g.add("Reshape", ["by_text", "shape"], "view")
    g.add("Shape", ["view"], "whole", start=0)
    g.constant("least", -2.0)
    g.add("Expand", ["least", "whole"], "fill")
    g.add("Where", ["mask", "view", "fill"], "masked")
    return g.add("ReduceMax", ["masked"], "longest", axes=[1], keepdims=0)


def divide(g: GraphBuilder, value: str) -> None:
    """By the norm, in the form that TensorRT 8.6 reads."""
    g.constant("last_axis", [-1], np.int64)
    g.constant("tiny", 1e-20)
    g.add("Mul", [value, value], "squares")
    g.add("ReduceSum", ["squares", "last_axis"], "square", keepdims=1)
    g.add("Clip", ["square", "tiny"], "safe")
    g.add("Sqrt", ["safe"], "norm")
    g.add("Reciprocal", ["norm"], "scale")
    g.add("Mul", [value, "scale"], "text")
