"""A recurrent text encoder on the GPU, one launch a text; a `Graph`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_infer.errors import DeviceError
from cir_infer.gpu.device import CooperativeKernel, Device, Memory, Stream
from cir_infer.processes.fork import finalize_here
from cir_infer.runtime.graph import Array
from cir_infer.runtime.recurrent.arguments import ARRIVAL_BYTES, EncodeArguments
from cir_infer.runtime.recurrent.text_graph import NoKernelError, RecurrentText
from cir_infer.runtime.recurrent.texts import INPUTS, checked_texts, output_of

__all__ = ["Placed", "RecurrentEncoder", "place"]

_ROWS = 16
"""Texts between two waits for the GPU."""
_LEAST_ROWS = 8
"""Rows of recurrent weights that a block should have, one a warp: with fewer, it costs more to wait for more
blocks than they save."""
_VECTOR = 4
_NORM_FLOATS = 8
"""Partial sums of the norm, one a warp."""


@dataclass(frozen=True)
class Placed:
    """How a layer lies on a GPU.

    Attributes:
        blocks: of each direction.
        block_units: most hidden units of one block.
        resident_rows: rows of recurrent weights that a block holds in shared memory; the others are read from
            the second-level cache at every step.
        shared_bytes: of a block.
    """

    blocks: int
    block_units: int
    resident_rows: int
    shared_bytes: int


def place(
    gates: int,
    directions: int,
    hidden: int,
    kernel: CooperativeKernel,
    multiprocessors: int,
    shared_bytes: int,
) -> Placed:
    """As many blocks as find work, up to one a multiprocessor; weights in shared memory as far as they fit.

    Args:
        gates: 3 or 4.
        directions: 1 or 2.
        hidden: units of a direction.
        kernel: says what fits the GPU.
        multiprocessors: of the GPU.
        shared_bytes: most shared memory of a block.

    Raises:
        NoKernelError: the GPU has too little shared memory, or room for too few blocks.
    """
    vectors = -(-hidden // _VECTOR)
    widest = -(-directions * hidden // _VECTOR)
    blocks = max(1, min(multiprocessors // directions, -(-hidden // -(-_LEAST_ROWS // gates))))
    while True:
        units = -(-hidden // blocks)
        scratch = max(_NORM_FLOATS, units * (gates + 2))
        fixed = 16 * widest + 16 * (-(-scratch // _VECTOR))
        fitting = (shared_bytes - fixed) // (16 * vectors)
        if fitting < 0:
            raise NoKernelError(
                f"{hidden} hidden units need {fixed} bytes of shared memory, and a block has {shared_bytes}"
            )
        rows = -(-units * gates // _VECTOR) * _VECTOR
        resident = min(rows, fitting // _VECTOR * _VECTOR)
        used = fixed + 16 * vectors * resident
        most = kernel.most_blocks(used) // directions
        if most >= blocks:
            return Placed(blocks, units, resident, used)
        if most < 1 or blocks == 1:
            raise NoKernelError(
                f"the GPU has no room for {directions} blocks with {used} bytes of shared memory"
            )
        blocks = min(most, blocks - 1)


class RecurrentEncoder:
    """Runs a `RecurrentText`. Threads may share one; their runs take turns, and texts go one after the other.

    All memory is taken here and never grows.

    Args:
        text: what to compute.
        device: the GPU.
        most_tokens: of a text.

    Attributes:
        vocabulary: tokens are below this number.
        version: of the compiled kernel.
        placed: how the layer lies on the GPU.

    Raises:
        NoKernelError: the layer does not fit this GPU.
        DeviceError: the kernel is not compiled for it, or memory is short.
    """

    def __init__(self, text: RecurrentText, device: Device, most_tokens: int) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._most_tokens = most_tokens
        self.vocabulary = len(text.words)
        self.inputs, self.outputs = INPUTS, output_of(text)
        closing = ExitStack()
        with device.active():
            self._kernel = device.cooperative(f"encode_{text.kind}")
            self.version = self._kernel.version
            gates = text.input_weights.shape[1]
            self.placed = place(
                gates, text.directions, text.hidden, self._kernel, device.multiprocessors, device.shared_bytes
            )
            self._stream = device.new_stream()
            try:
                self._arguments = self._prepare(text, closing)
            except BaseException:
                closing.close()
                raise
        finalize_here(self, _release, device, self._stream, closing)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`.

        Raises:
            DeviceError: an input is missing or has another type or shape, a token is not in the vocabulary, a
                length is beyond the tokens or the encoder's limit, or the GPU failed.
        """
        tokens, lengths = checked_texts(feeds, self.vocabulary, self._most_tokens)
        found = np.empty((len(tokens), self.outputs[0].shape[1] or 0), np.float32)
        with self._device.active(), self._lock:  # which another thread may have held at a fork
            for start in range(0, len(tokens), _ROWS):
                part = slice(start, start + _ROWS)
                self._encode(tokens[part], lengths[part], found[part])
        return {"text": found}

    def _encode(self, tokens: Array, lengths: Array, found: Array) -> None:
        rows, width = tokens.shape
        staged = self._tokens_host.array.view(np.int32)[: rows * width]
        staged[:] = tokens.reshape(-1)
        self._device.upload(self._tokens.address, staged, self._stream)
        done = self._done.array.view(np.uint32)
        done[:rows] = 0
        grid = (self.placed.blocks, self._arguments.directions)
        for row in range(rows):
            arguments = EncodeArguments.from_buffer_copy(self._arguments)
            arguments.tokens += 4 * row * width
            arguments.text += found[0].nbytes * row
            arguments.done += 4 * row
            arguments.steps = int(lengths[row])
            self._kernel.launch(grid, self.placed.shared_bytes, arguments, self._stream)
        self._device.synchronize(self._stream)
        if not done[:rows].all():
            self._device.zero(self._arguments.arrivals, ARRIVAL_BYTES, self._stream)
            raise DeviceError(
                "the recurrent kernel gave up: its blocks waited ten seconds for one another; check the GPU "
                "with nvidia-smi, or run the text encoder elsewhere (docs/deploy.md)"
            )
        found[:] = self._texts.array.view(np.float32)[: found.size].reshape(found.shape)

    def _prepare(self, text: RecurrentText, closing: ExitStack) -> EncodeArguments:
        """Weights on the GPU in the kernel's order, and all scratch memory."""
        device, directions, hidden = self._device, text.directions, text.hidden
        gates = text.input_weights.shape[1]

        def scratch(nbytes: int) -> int:
            memory = device.allocate(max(nbytes, 4))
            closing.callback(memory.free)
            return memory.address

        def weights(values: Array | None) -> int:
            if values is None:
                return 0
            values = np.ascontiguousarray(values, np.float32)
            address = scratch(values.nbytes)
            device.upload(address, values, self._stream)
            device.synchronize(self._stream)  # the source may go
            return address

        def host(nbytes: int) -> Any:
            memory = device.allocate_host(nbytes)
            closing.callback(memory.free)
            return memory

        self._tokens_host = host(4 * _ROWS * self._most_tokens)
        self._texts = host(4 * _ROWS * text.out)
        self._done = host(4 * _ROWS)
        self._tokens: Memory = device.allocate(4 * _ROWS * self._most_tokens)
        closing.callback(self._tokens.free)
        arrivals = scratch(ARRIVAL_BYTES)
        device.zero(arrivals, ARRIVAL_BYTES, self._stream)
        rows = directions * hidden * gates
        return EncodeArguments(
            self._tokens.address,
            weights(_padded(text.words)),
            weights(_padded(text.input_weights.swapaxes(1, 2))),
            weights(text.input_bias.swapaxes(1, 2)),
            weights(_padded(text.recurrent_weights.swapaxes(1, 2))),
            weights(text.candidate_bias),
            weights(None if text.projection is None else _padded(text.projection)),
            weights(text.projection_bias),
            scratch(4 * self._most_tokens * rows),
            scratch(4 * self._most_tokens * directions * hidden),
            scratch(4 * directions * hidden),
            scratch(4 * text.out),
            arrivals,
            self._texts.address,
            self._done.address,
            0,
            directions,
            hidden,
            text.out,
            -(-text.words.shape[1] // _VECTOR),
            -(-hidden // _VECTOR),
            -(-directions * hidden // _VECTOR),
            self.placed.block_units,
            self.placed.resident_rows,
            int(text.over_time),
            -1.0 if text.least_square is None else text.least_square,
            0,
        )


def _padded(values: Array) -> Array:
    """Rows padded with zeros to 16 bytes."""
    more = -values.shape[-1] % _VECTOR
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, more)])


def _release(device: Device, stream: Stream, closing: ExitStack) -> None:
    with device.active():
        device.synchronize(stream)
        closing.close()
