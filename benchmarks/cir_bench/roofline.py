"""What this machine can do, measured here and now: reading memory, and multiplying matrices.

A figure is worth reporting as a fraction of these; a fraction travels to other machines, a time does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cir_bench.timing import repeat
from cir_infer.bundle.model import Model
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.cpu import CpuScorer

__all__ = ["matrix_rate", "read_bandwidth"]

_READ_BYTES = 256 << 20
_SIDE = 1024
_CHAIN = 4


def read_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Bytes a second at which `threads` threads can read memory that is in no cache.

    The native module sums every byte, which is all that it does. The best run counts, since anything
    else that happens only slows it down.

    Raises:
        DeviceError: the native module is not built.
    """
    scorer = CpuScorer(Rows.of(np.ones((_READ_BYTES // 2048, 512), np.float32)), threads=threads)
    taken = repeat(scorer.read_all, seconds=seconds, at_least=5)
    return 1e3 * _READ_BYTES / float(taken.min())


def matrix_rate(device: str = "cpu", threads: int | None = None, seconds: float = 1.0) -> float:
    """Multiply-accumulates a second of float32 matrix products in the library that runs the graphs.

    Args:
        device: "cpu" or "cuda".
        threads: threads inside an operator, as for `Engine`.
        seconds: how long to measure.
    """
    run = _chain_of_products(device, threads)
    taken = repeat(run, seconds=seconds, at_least=3)
    return 1e3 * _CHAIN * _SIDE**3 / float(taken.min())


def _chain_of_products(device: str, threads: int | None) -> Callable[[], object]:
    """A graph of the largest of each row of x W W W W; four products make the transfers negligible."""
    from onnx import TensorProto, helper, numpy_helper

    from cir_infer.runtime.devices import open_graphs

    random = np.random.default_rng(0)
    weight = (random.standard_normal((_SIDE, _SIDE)) / np.sqrt(_SIDE)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(_CHAIN)]
    nodes.append(helper.make_node("ReduceMax", [f"x{_CHAIN}"], ["y"], axes=[1], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [_SIDE, _SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_SIDE])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    opened = open_graphs({"products": Model(model.SerializeToString())}, device, threads).graphs["products"]
    x = random.standard_normal((_SIDE, _SIDE)).astype(np.float32)
    return lambda: opened.run({"x0": x})
