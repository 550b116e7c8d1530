"""Recurrent text encoders for the processor: from a bundle's graph, or from what was kept of it."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import NUMBERS, OnnxModel, read_onnx_model
from cir_infer.errors import DeviceError, shown
from cir_infer.runtime.graph import Array
from cir_infer.runtime.kept.graph_file import GraphFile
from cir_infer.runtime.kept.graphs import Form
from cir_infer.runtime.kept.weights import Weight
from cir_infer.runtime.recurrent.processor import ProcessorEncoder
from cir_infer.runtime.recurrent.text_graph import NoKernelError, RecurrentText, match_text_graph

__all__ = ["RecurrentKernels"]

_log = logging.getLogger(__name__)

_MOST = 256 << 20
"""Bytes of a model that is looked into: recurrent encoders have some megabytes, transformers hundreds."""

_MARK = b"recurrent text encoder "
"""How what is kept begins; an ONNX model begins with a number."""

_ARRAYS = (
    *("words", "input_weights", "recurrent_weights", "input_bias"),
    *("candidate_bias", "projection", "projection_bias"),
)
_FLOAT = next(kind for kind, dtype in NUMBERS.items() if dtype == np.dtype("<f4"))


class RecurrentKernels:
    """Runs recurrent text encoders; see `Kernels`.

    Args:
        threads: see `ProcessorEncoder`.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads

    def load(self, model: Model) -> tuple[ProcessorEncoder, Form] | None:
        """The encoder that a text graph is; None where ONNX Runtime is to run it.

        Raises:
            BundleError: the model cannot be read.
        """
        if model.size > _MOST:
            return None
        graph = read_onnx_model(model.data, model.weights)
        if not _all_float32(graph):
            return None
        try:
            text = match_text_graph(graph)
            return ProcessorEncoder(text, self._threads), _form(text)
        except NoKernelError as reason:
            _log.debug("the text graph runs on ONNX Runtime: %s", reason)
        except DeviceError as error:
            _log.warning("the text graph runs on ONNX Runtime: %s", shown(error))
        return None

    def reopen(self, found: GraphFile) -> ProcessorEncoder | None:
        """What `load` gave; None where something else was kept.

        Raises:
            ValueError, TypeError, KeyError, DeviceError: it cannot be used.
        """
        if not found.model.startswith(_MARK):
            return None
        said = json.loads(found.model[len(_MARK) :])
        arrays: dict[str, Array | None] = {**dict.fromkeys(_ARRAYS), **dict(found.weights)}
        fields: dict[str, Any] = {**said, **arrays}
        return ProcessorEncoder(RecurrentText(**fields), self._threads)


def _form(text: RecurrentText) -> Form:
    said = {"kind": text.kind, "over_time": text.over_time, "least_square": text.least_square}
    arrays = {name: getattr(text, name) for name in _ARRAYS}
    weights = [
        Weight(name, _FLOAT, array.shape, np.ascontiguousarray(array, "<f4").data.cast("B"))
        for name, array in arrays.items()
        if array is not None
    ]
    return _MARK + json.dumps(said).encode(), weights


def _all_float32(graph: OnnxModel) -> bool:
    """In other precisions a bundle was judged by what ONNX Runtime makes of its roundings."""
    return not graph.stores_bfloat16 and all(
        value.dtype == np.float32 for value in graph.constants.values() if value.dtype.kind == "f"
    )
