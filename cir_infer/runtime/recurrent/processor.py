"""A recurrent text encoder on the processor, by kernels of ours; see kernels/recurrent/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cir_infer.errors import DeviceError
from cir_infer.extras import importing
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.ending import native_call
from cir_infer.runtime.graph import Array
from cir_infer.runtime.recurrent.text_graph import RecurrentText
from cir_infer.runtime.recurrent.texts import INPUTS, checked_texts, output_of

__all__ = ["ProcessorEncoder", "instruction_sets"]

_AT_ONCE = 4096
"""Texts between two chances for Ctrl-C; the kernels take a million."""


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
        tokens, lengths = np.ascontiguousarray(tokens), np.ascontiguousarray(lengths)
        parts = []
        for start in range(0, max(len(tokens), 1), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            with native_call:
                parts.append(self._native.encode(tokens[part], lengths[part], self._threads))
        return {"text": parts[0] if len(parts) == 1 else np.concatenate(parts)}


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first.

    Raises:
        DeviceError: the native module is not built.
    """
    return tuple(_native().instruction_sets())


def _native() -> Any:
    """The compiled module."""
    with importing("the compiled text encoder", _not_built):
        from cir_infer.runtime.recurrent import _recurrent
    return _recurrent


def _not_built(reason: str) -> DeviceError:
    return DeviceError(
        f"the compiled text encoder cannot be loaded ({reason}); this looks like a source checkout that "
        "was not built: run `pip install -e .` in it (needs a C++17 compiler)"
    )
