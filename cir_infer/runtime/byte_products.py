"""Products of bytes that are exact on every processor.

x86-64 processors with AVX2 and without VNNI add two products of bytes in 16 bits, and ONNX Runtime lets them
cut off what does not fit there: an int8 encoder that passed its gate elsewhere gives other embeddings. It has
another way, which takes longer, and fails at a weight that is read twice; such a graph is computed in
float32, from the same bytes.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import BundleError, DeviceError
from cir_infer.runtime.graph import Array
from cir_infer.scoring.cpu import instruction_sets

__all__ = ["exact_products"]

_MARK = b"QuantizeLinear"
_LONGER = ("session.x64quantprecision", "1")
_FLOAT32 = ("session.disable_quant_qdq", "1")


def exact_products(model: Model) -> tuple[str, str] | None:
    """What ONNX Runtime's session is told, as a name and a value; None where it needs no telling.

    Args:
        model: that it will run on this processor.
    """
    if not _cut_off() or _MARK not in model.data:
        return None
    try:
        said = read_onnx_model(model.data, model.weights)
    except BundleError:
        return None  # it is no model, which ONNX Runtime says better
    read = Counter(name for node in said.nodes for name in node.inputs)
    for node in said.nodes:
        if node.op == "DequantizeLinear":
            bytes_ = [name for name in node.inputs if _is_int8(said.constants.get(name))]
            if bytes_ and any(read[name] > 1 for name in (*bytes_, node.outputs[0])):
                return _FLOAT32
    return _LONGER


def _is_int8(values: Array | None) -> bool:
    return values is not None and values.dtype == np.int8


@cache
def _cut_off() -> bool:
    try:
        known = instruction_sets()
    except DeviceError:
        return False  # without them nothing is scored here either, which is said then
    return "avx2" in known and not any("vnni" in name or "amx" in name for name in known)
