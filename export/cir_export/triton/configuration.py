"""`config.pbtxt`, the text form of Triton's `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cir_infer.errors import ExportError
from cir_infer.runtime.graph import Tensor

__all__ = ["graph_configuration", "search_configuration"]

_TYPES = {
    np.dtype(np.uint8): "TYPE_UINT8",
    np.dtype(np.int32): "TYPE_INT32",
    np.dtype(np.int64): "TYPE_INT64",
    np.dtype(np.float16): "TYPE_FP16",
    np.dtype(np.float32): "TYPE_FP32",
}
_HEAD = "# Written by cir-export. Batches are made of what waits; nothing waits for a batch."


def graph_configuration(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], largest_batch: int
) -> str:
    """The configuration of one graph of a bundle, for the ONNX Runtime backend.

    Args:
        name: the model's.
        inputs: of the graph.
        outputs: of the graph.
        largest_batch: requests that are put together at most.
    """
    parts = [
        *(_tensor("input", tensor) for tensor in inputs),
        *(_tensor("output", tensor) for tensor in outputs),
    ]
    return _model(name, "onnxruntime", largest_batch, parts)


def search_configuration(
    name: str, terms: int, parameters: Mapping[str, str], largest_batch: int, reads: Sequence[str]
) -> str:
    """The configuration of the search, for the Python backend.

    Args:
        name: the model's.
        terms: J.
        parameters: what the model is told.
        largest_batch: requests that are put together at most.
        reads: which of "reference" and "text" a query has.
    """
    inputs = [("K", "TYPE_INT32", [1], True), ("WHERE", "TYPE_STRING", [1], True)]
    if "text" in reads:
        inputs.insert(0, ("TEXT", "TYPE_STRING", [-1], False))
    if "reference" in reads:
        inputs = [("IMAGE", "TYPE_STRING", [1], True), ("ITEM", "TYPE_STRING", [1], True), *inputs]
    outputs = [
        ("IDS", "TYPE_STRING", [-1], False),
        ("SCORES", "TYPE_FP32", [-1], False),
        ("TERMS", "TYPE_FP32", [-1, terms], False),
    ]
    parts = [
        *(_entry("input", *entry) for entry in inputs),
        *(_entry("output", *entry) for entry in outputs),
        *(
            f"parameters {{\n  key: {_quoted(key)}\n  value {{ string_value: {_quoted(value)} }}\n}}"
            for key, value in parameters.items()
        ),
    ]
    return _model(name, "python", largest_batch, parts)


def _model(name: str, backend: str, largest_batch: int, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            _HEAD,
            f"name: {_quoted(name)}",
            f"backend: {_quoted(backend)}",
            f"max_batch_size: {largest_batch}",
            *parts,
            "dynamic_batching { max_queue_delay_microseconds: 0 }",
            "version_policy { latest { num_versions: 1 } }",
            "instance_group [ { count: 1 kind: KIND_AUTO } ]",
            "",
        ]
    )


def _tensor(kind: str, tensor: Tensor) -> str:
    """A tensor without its first axis, which is the batch's."""
    if tensor.dtype not in _TYPES:
        raise ExportError(f"Triton has no type for {tensor.name}, which is {tensor.dtype}")
    if not tensor.shape:
        raise ExportError(f"{tensor.name} has no batch axis, and Triton needs one")
    dims = [-1 if length is None else length for length in tensor.shape[1:]]
    return _entry(kind, tensor.name, _TYPES[tensor.dtype], dims, False)


def _entry(kind: str, name: str, type_: str, dims: Sequence[int], optional: bool) -> str:
    # Triton has no tensors without dimensions: what is one number an item arrives as (n, 1) and loses the 1.
    shape = ", ".join(map(str, dims or [1]))
    reshape = "" if dims else "\n  reshape { shape: [ ] }"
    more = "\n  optional: true" if optional else ""
    return f"{kind} {{\n  name: {_quoted(name)}\n  data_type: {type_}\n  dims: [ {shape} ]{reshape}{more}\n}}"


def _quoted(text: str) -> str:
    """A text as protocol buffers quote it."""
    plain = "".join(
        char
        if 32 <= ord(char) < 127 and char not in '"\\'
        else "".join(f"\\{byte:03o}" for byte in char.encode())
        for char in text
    )
    return f'"{plain}"'
