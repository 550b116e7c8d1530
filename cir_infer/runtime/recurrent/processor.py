"""A recurrent text encoder on the processor, by kernels of ours; see kernels/recurrent/README.md."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import OnnxModel, read_onnx_model
from cir_infer.errors import DeviceError, shown
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.ending import native_call
from cir_infer.runtime.graph import Array
from cir_infer.runtime.recurrent.text_graph import NoKernelError, RecurrentText, match_text_graph
from cir_infer.runtime.recurrent.texts import INPUTS, checked_texts, output_of

__all__ = ["ProcessorEncoder", "instruction_sets", "processor_encoder"]

_log = logging.getLogger(__name__)

_MOST = 256 << 20
"""Bytes of a model that is looked into: recurrent encoders have some megabytes, transformers hundreds."""


class ProcessorEncoder:
    """Runs a `RecurrentText`. Threads may share one, and forked children may use it.

    Args:
        text: what to compute.
        threads: of a call; None for every core that the process may use.
        instruction_set: one of `instruction_sets()`; None for the best.

    Attributes:
        vocabulary: tokens are below this number.
        instruction_set: what it runs on.

    Raises:
        DeviceError: the native module is missing, or the machine lacks the instruction set.
    """

    def __init__(
        self, text: RecurrentText, threads: int | None = None, instruction_set: str | None = None
    ) -> None:
        self.vocabulary = len(text.words)
        self.inputs, self.outputs = INPUTS, output_of(text)
        self._threads = threads or available_cpus()
        try:
            self._native = _native().Encoder(
                text.words.copy(),  # the other arrays are copied there, and the model need not be kept
                text.input_weights,
                text.recurrent_weights,
                text.input_bias,
                text.candidate_bias,
                text.over_time,
                text.projection,
                text.projection_bias,
                -1.0 if text.least_square is None else text.least_square,
                instruction_set or "",
            )
        except ValueError as error:
            raise DeviceError(
                f"{error}; it has {', '.join(instruction_sets())}"
                if instruction_set is not None
                else f"the recurrent kernel does not take this layer: {error}"
            ) from error
        self.instruction_set = str(self._native.instruction_set)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`.

        Raises:
            DeviceError: see `checked_texts`.
        """
        tokens, lengths = checked_texts(feeds, self.vocabulary)
        with native_call:
            found = self._native.encode(
                np.ascontiguousarray(tokens), np.ascontiguousarray(lengths), self._threads
            )
        return {"text": found}


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first.

    Raises:
        DeviceError: the native module is not built.
    """
    return tuple(_native().instruction_sets())


def processor_encoder(model: Model, threads: int | None) -> ProcessorEncoder | None:
    """The encoder that a text graph is; None where ONNX Runtime is to run it.

    Args:
        model: the graph.
        threads: see `ProcessorEncoder`.

    Raises:
        BundleError: the model cannot be read.
    """
    if model.size > _MOST:
        return None
    graph = read_onnx_model(model.data, model.weights)
    if not _all_float32(graph):
        return None
    try:
        return ProcessorEncoder(match_text_graph(graph), threads)
    except NoKernelError as reason:
        _log.debug("the text graph runs on ONNX Runtime: %s", reason)
    except DeviceError as error:
        _log.warning("the text graph runs on ONNX Runtime: %s", shown(error))
    return None


def _all_float32(graph: OnnxModel) -> bool:
    """In other precisions a bundle was judged by what ONNX Runtime makes of its roundings."""
    return not graph.stores_bfloat16 and all(
        value.dtype == np.float32 for value in graph.constants.values() if value.dtype.kind == "f"
    )


def _native() -> Any:
    """The compiled module."""
    try:
        from cir_infer.runtime.recurrent import _recurrent
    except ImportError as error:
        raise DeviceError(
            f"the compiled text encoder cannot be loaded ({error}); this looks like a source checkout that "
            "was not built: run `pip install -e .` in it (needs a C++17 compiler)"
        ) from error
    return _recurrent
